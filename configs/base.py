"""Every option once: its default and what it means. Recipes start from `get_config()` and change what they need.

A duration is a string such as "500steps", "3epochs", "1_000_000examples" or "2%" (of the run), or an integer
number of steps. Sections left empty here (`model`, `objectives`, `providers`, `data.sources`, `evals`) hold named
entries; what an entry may hold is the dataclass of its type.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict(type_safe=False)  # load_config checks keys and types, all at once and with their full path
    c.seed = 0  # parameters, data order, augmentation and dropout all derive from it
    c.batch_size = 256  # samples of one optimizer step, over all devices and micro-batches
    c.accumulation = 1  # micro-batches per step; the result is exact, contrastive objectives included

    c.mesh = dict(
        data=-1,  # devices along the batch; -1 takes what the other axes leave
        fsdp=1,  # devices that share one copy of the parameters (the batch is split over them too)
        tensor=1,  # devices that split each large matrix
        rules=(),  # extra ((path regex, (axis, ...)), ...), tried before the built-in ones
    )

    # Weights to start from instead of random ones: an imported folder, a run, or "hf:DIR"; "" starts afresh. Every
    # parameter must be in it and fit, but for those whose path one of the patterns of `init_from_except` matches.
    c.init_from = ""
    c.init_from_except = ()  # such as ("text/.*", "objectives/.*")
    c.model = {}  # towers and how they read each other: made by xmodal.models.presets
    c.objectives = {}  # name -> dict(type=..., weight=..., ...)
    # What is added to each batch without a gradient, name -> dict(type="teacher", model=...): a frozen teacher (a run,
    # an imported folder, "hf:DIR"), the average of the run's weights (type="ema"), negatives mined from the batch.
    c.providers = {}

    c.data = _data()
    c.optimizer = _optimizer()
    c.schedule = dict(
        total="10epochs",  # length of the run
        warmup="2%",  # linear rise of the learning rate
        decay="cosine",  # cosine | linear | rsqrt | steps | constant
        drops=(),  # durations from the start after each of which the learning rate falls to a tenth (steps)
        final=0.0,  # learning rate at the end, as a share of the peak
        cooldown="0%",  # linear fall to `final` at the end (rsqrt, steps and constant)
    )

    c.evals = {}  # name -> dict(type="retrieval", every="25%", ...)
    c.checkpoint = dict(
        every="10%",  # 0 saves only at the end and on interruption
        keep_last=2,  # newest checkpoints to keep
        keep_every="",  # also keep one checkpoint per this duration; "" keeps none
        best="",  # metric whose best checkpoint is kept, such as "retrieval/val/image_to_text/R@1"
        best_mode="max",  # max | min
    )
    c.log = dict(
        every=10,  # steps between metric rows
        tensorboard=True,  # also write events for TensorBoard, in the run folder
        wandb="",  # project of Weights & Biases that gets the metrics, too (`pip install 'xmodal[wandb]'`); "" for none
        intervals="bca",  # bca | percentile | none: 95 % bootstrap intervals of the final evaluation's figures
        compile_cache="~/.cache/xmodal/jax",  # compiled programs shared by runs of this user; "" keeps none
    )
    c.watchdog = dict(
        step=600.0,  # seconds without a finished step before the run dumps its stacks and ends; 0: no limit
        slow=3600.0,  # the same for compiling, restoring and evaluating
    )
    return c


def _data() -> dict:
    return dict(
        sources={},  # name -> dict(urls="shards-{0000..0009}.tar", weight=1.0, ...); see data_pipelines/sources
        image=_image(),
        text=dict(
            tokenizer="",  # path of a Hugging Face tokenizer.json
            length=77,  # tokens per caption, begin and end marks included
            # Shorter lengths, such as (16, 32): a batch then holds captions of one bucket, and is no longer than that.
            buckets=(),
            templates=(),  # ((weight, "{label}, {tags}"), ...) over the json fields; () uses the .txt member
            lines=False,  # the lines of a text are a caption each (CLIP_benchmark's retrieval sets), or else one
            captions=1,  # of a sample, drawn anew at each visit, for objectives that take several (sigmoid, flair)
            max_list=4,  # a list field (such as tags) gives 1 to this many of its entries, shuffled
            # Every text is prepared by the next two, prompts and queries too; white space becomes single spaces always.
            lower=True,  # lower-case texts
            # none | basic (HTML entities to characters, Unicode NFC) | open_clip's whitespace (basic, and ftfy mends
            # wrong encodings, quotes, full width), lower (in lower case) and canonicalize (without punctuation, too)
            clean="none",
            transform="",  # a function of your own for training captions, "my_package.module:function"
        ),
        label=dict(
            # json field or column with the class of a sample, or a list of them; `cls` is also the tar member with an
            # integer. "" gives batches no labels.
            field="",
            classes=(),  # names of the classes in the order of their ids
            count=0,  # number of classes where the field holds ids and not names
            most=1,  # classes of one sample; more than 1 for multi-label data
        ),
        modalities=("image", "text"),  # what a sample must have; ("text",): texts alone, images are not looked at
        group_key="",  # json field that names equal content (multi-positive labels); "" uses the tar key
        lanes=8,  # virtual readers; the order depends on it, the host count must divide it
        window=32,  # blocks that a lane shuffles together
        block_bytes=8 * 2**20,  # target size of a block, the unit of reading
        batches="mixed",  # mixed | by_source: all samples of a batch come from one entry of `sources`
        readers=2,  # blocks read at a time; local disks need no more, buckets some 16
        threads=0,  # decoding threads; 0 uses every core
        prefetch=8,  # batches decoded ahead
        remote=dict(
            concurrency=16,  # requests in flight to buckets and web servers
            attempts=8,  # of one request before the run ends with what the server said
            timeout=60.0,  # seconds of one attempt
            backoff=1.0,  # seconds before the second attempt, doubled at each further one
        ),
        max_bad_share=0.05,  # of samples replaced because they cannot be read; above it the run stops
    )


def _image() -> dict:
    return dict(
        size=224,  # pixels of the square that the model sees
        # Training crop: random_resized | inception (the same, always with 5 to 100 % of the area) | resize_crop (a
        # square as large as the shorter side, anywhere) | center | squash (of `resize` pixels a square of `size`,
        # anywhere) | whole (naflex). Evaluation: squash where that is chosen here, or else the shorter side; the
        # central square. With naflex always whole.
        crop="random_resized",
        # Evaluation: the shorter side (squash: both sides) gets this many pixels before the square is cut; 0: `size`.
        resize=0,
        filter="bicubic",  # of the evaluation's resizing: bicubic | bilinear | nearest
        rounding="even",  # of odd margins of that square: even (as torchvision, open_clip) | down (transformers)
        scale=(0.9, 1.0),  # share of the area that a random crop keeps (CLIP: 0.9 to 1)
        ratio=(0.75, 4 / 3),  # aspect ratio of a random crop
        # Images at their own aspect ratio, as sequences of patches (SigLIP 2), for towers of presets.naflex. Then
        # `size` means nothing, and `crop` is whole, random_resized or inception, whose parts keep their shape, too.
        naflex=dict(
            lengths=(),  # patches that a batch has room for, such as (128, 256, 576); one is drawn for each batch
            weights=(),  # how often each of them is drawn; () equally often
            length=0,  # patches in evaluation, embedding and export; 0: the longest
            patch_size=16,  # pixels of a patch's side
        ),
        exif=False,  # turn photographs as their EXIF orientation says; published CLIP and SigLIP models were not
        # Of transparent images: white | black | drop (the colours under the transparency, as OpenAI's CLIP and
        # open_clip show them). Imported models say what their reference does.
        background="white",
        max_pixels=2**26,  # larger images are bad samples; a small file can claim any size
        mean=(0.48145466, 0.4578275, 0.40821073),  # of RGB in 0..1; subtracted on the device
        std=(0.26862954, 0.26130258, 0.27577711),  # of the same; divides on the device
        flip=False,  # random horizontal flip, on the device
        policy="",  # "" | "randaugment" (in full "randaugment-m9-n2") | "trivial" | "autoaugment", on the device
        jitter=0.0,  # strength of brightness, contrast and saturation changes, on the device
        grey=0.0,  # probability of losing the colours (SimCLR: 0.2), on the device
        blur=0.0,  # probability of a Gaussian blur (SimCLR: 0.5), on the device
        solarize=0.0,  # probability of inverting the brighter half of the values (BYOL: 0.2), on the device
        erase=0.0,  # probability of erasing a random rectangle (Zhong et al. 2017: 0.5), on the device
        mixup=0.0,  # alpha of weighted means of two images (Zhang et al. 2017: 0.2); 0 mixes none
        cutmix=0.0,  # alpha of rectangles pasted from another image (Yun et al. 2019: 1); with mixup, one of both
        # A function of your own for training images, "my_package.module:function", see data_pipelines/stream/hooks.py.
        transform="",
    )


def _optimizer() -> dict:
    return dict(
        name="adamw",  # adamw | lamb | lion | adafactor | sgd | muon
        lr=1e-3,  # peak learning rate
        b1=0.9,  # decay of the mean of the gradients; lion: of the mix that gives the sign
        b2=0.98,  # adafactor: upper bound of its rising decay
        eps=1e-6,  # added to the root of the second moment (adamw, lamb, muon's rest)
        momentum=0.95,  # muon: of the trunks' matrices, everything else follows AdamW; sgd: of all (published: 0.9)
        weight_decay=0.2,  # multiplied by the learning rate when applied, as in AdamW; sgd: a part of the gradient
        clip_norm=1.0,  # global gradient norm; 0 never clips
        layer_decay=1.0,  # each layer's learning rate as a share of that of the layer above (fine-tuning: 0.7 to 0.9)
        ema=0.0,  # decay of the averaged weights used for evaluation; 0 keeps none
        max_nonfinite=5,  # skipped steps in a row (loss or gradient not finite) that stop the run
        # Further optimizers, name -> dict(name="adamw", lr=..., b1=..., clip_norm=..., schedule=dict(...)), for what
        # rules give them, such as a critic; what an entry leaves out is as above.
        others={},
        # ((path regex, dict(lr=multiplier, weight_decay=value, freeze=bool, optimizer=name)), ...): first match wins
        rules=((r".*/(bias|scale|logit_scale|logit_bias|gate)", dict(weight_decay=0.0)),),
    )
