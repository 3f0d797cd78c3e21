"""A ResNet that classifies (He et al. 2015): `:emoji` (default); for ImageNet-1k `:18`, `:34`, `:50`, `:101`, `:152`.

    python train.py --config configs/resnet_classify.py --workdir runs/resnet_emoji
    python train.py --config configs/resnet_classify.py:50 --workdir runs/resnet50 \
        --config.data.sources.train.urls='gs://bucket/imagenet-train-{0000..1023}.tar' \
        --config.evals.val.urls='gs://bucket/imagenet-val-{0000..0049}.tar' \
        --config.data.inputs.text.tokenizer=data_pipelines/emoji/tokenizer.json

ImageNet: ResNet v1.5, batch 256, SGD with momentum 0.9, weight decay 1e-4 on everything, learning rate 0.1 and a tenth
of it after 30 and 60 of 90 epochs. Expect top-1 69.8 % (18), 73.3 % (34), 76.1 % (50), 77.4 % (101), 78.3 % (152), as
torchvision's weights of this recipe have it. A batch k times as large takes k times the learning rate and a warmup of 5
epochs (Goyal et al. 2017): `--config.batch_size=8192 --config.optimizer.lr=3.2 --config.schedule.warmup=5epochs`.
Shards have a `cls` member. Not run here.

`:emoji` learns the nine Unicode groups from four vendors' drawings and is measured on a fifth vendor's, as
configs/vit_classify.py is: top-1 67.3 % (95 % interval 65.1 to 69.5; chance 11.1), mean per class 60.6 %, after 12
epochs in 6 to 7 minutes on 2 cores.
"""

from xmodal.configs import base
from xmodal.configs.vit_classify import GROUPS, emoji_groups, imagenet_classes
from xmodal.models import presets

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
VARIANTS = ("emoji", *presets.RESNET)


def get_config(variant: str = "emoji"):
    c = base.get_config()
    c.objectives = dict(classification=dict(type="classification", tower="image", loss="softmax", weight=1.0))
    # As published: no clipping, and norms and biases are decayed, too.
    c.optimizer.update(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, clip_norm=0.0, rules=())
    return small(c) if variant == "emoji" else imagenet(c, variant)


def small(c):
    c = emoji_groups(c)
    c.batch_size = 128
    stages = dict(block="basic", depths=(1, 1, 1), widths=(32, 64, 128), stem_width=32)
    c.model = presets.dual_tower(image=presets.classifier(presets.resnet_tower(stages, init="resnet"), len(GROUPS)))
    c.optimizer.weight_decay = 5e-4
    c.schedule.update(total="12epochs", warmup="1epochs", decay="steps", drops=("8epochs", "11epochs"))
    return c


def imagenet(c, variant):
    c = imagenet_classes(c)
    c.data.inputs.image.update(size=224, crop="random_resized", scale=(0.08, 1.0), flip=True, **IMAGENET)
    c.data.inputs.image.update(resize=256, filter="bilinear")
    c.batch_size = 256
    c.model = presets.dual_tower(image=presets.classifier(presets.resnet(variant), 1000), dtype="bfloat16")
    c.schedule.update(total="90epochs", warmup="0%", decay="steps", drops=("30epochs", "60epochs"))
    return c
