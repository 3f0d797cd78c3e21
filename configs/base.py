"""Every option once: its default and what it means. Recipes start from `get_config()` and change what they need.

A duration is a string such as "500steps", "3epochs", "1_000_000examples" or "2%" (of the run), or an integer
number of steps. Sections left empty here (`model`, `objectives`, `providers`, `data.inputs`, `data.sources`, `evals`)
hold named entries; what an entry may hold is the dataclass of its type.
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

    # Weights to start from instead of random ones: an imported folder, a run, or "hf:DIR"; None starts afresh. Or
    # several places, ((path regex, place), ...): the first that matches a parameter gives it. Every parameter must be
    # covered, be there and fit, but for those whose path one of the patterns of `init_from_except` matches. With
    # (path regex, place, dict(stored=False)) frozen parameters stay out of checkpoints and are read again from there.
    c.init_from = None
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
        # name -> dict(type="image", size=224, ...): the parts of every sample, each of a modality; see
        # data_pipelines/modalities. Towers name them as `embed.input`.
        inputs={},
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
