"""The settings of a config.json: completed, checked and bounded before anything is built from them.

Every key of a section is one of: read, fixed (a tower here has one value of it), idle (it changes nothing that is
computed here), or unknown. Only the first and the third are accepted with any value.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from xmodal.interop.tables import InteropError, fail

# What every configuration of transformers may carry: how a model is called and stored, and how a text is generated.
_IDLE = frozenset((
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
    "_name_or_path", "architectures", "attn_implementation", "bad_words_ids", "begin_suppress_tokens",
    "bos_token_id", "chunk_size_feed_forward", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label",
    "initializer_factor", "initializer_range", "label2id", "length_penalty", "max_length", "min_length",
    "model_type", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_past", "output_scores", "pad_token_id", "prefix",
    "problem_type", "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate",
    "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "transformers.js_config", "typical_p", "use_bfloat16", "use_cache",
))  # fmt: skip
_FIXED = dict(add_cross_attention=False, cross_attention_hidden_size=None, is_decoder=False, is_encoder_decoder=False,
              pruned_heads={}, quantization_config=None)  # fmt: skip
_TRAINING = ": it matters in training alone, which the recipe decides here. Set it to 0.0"
_HINTS = {
    "quantization_config": ": quantised weights are not read here. Save the model in float32, float16 or bfloat16",
    "hidden_dropout_prob": _TRAINING,
    "drop_path_rate": _TRAINING,
    "dropout": _TRAINING,
}
# The largest numbers that are read, far above those of any published model: larger ones are damage, and building a
# table of so many layers would take for ever.
_LIMITS = dict(num_hidden_layers=1000, depths=500, num_block_repeats=50, depth_coefficient=10, vocab_size=2**24,
               max_position_embeddings=2**20, num_labels=2**20, num_patches=2**20)  # fmt: skip
_LIMIT = 2**17
_STAGES = 32  # entries of a list
_SIDES = ("image_size", "patch_size")  # a number, or one a side


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a section of a config.json may hold.

    Attributes:
      read: keys that are used, with the default of the reference's configuration class, which says their type; None
        stands for a number that may be missing.
      fixed: keys that must have this value.
      idle: keys that change nothing that is computed here, beside those that every configuration has.
    """

    read: Mapping[str, Any]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    idle: Collection[str] = ()

    def __or__(self, changes: Mapping[str, Any]) -> "Settings":
        """These settings with more that are read, or with other defaults."""
        return dataclasses.replace(self, read={**self.read, **changes})


def section(config: Mapping[str, Any], part: str, settings: Settings, *, dict_wins: bool = False) -> dict:
    """Returns the settings of one part of a config.json that are read, completed by their defaults.

    Args:
      config: of the file.
      part: "text_config", "vision_config", or "" for the file itself.
      settings: what the part may hold.
      dict_wins: the reference reads `<part>_dict` (of files before 2023) instead of the part where both are there.

    Raises:
      InteropError: settings that are unknown, out of range, or not as a tower here has them; all are listed.
    """
    part, given = part_of(config, part, dict_wins) if part else ("", config)
    where = f"{part}." if part else ""
    problems = []
    for key, value in given.items():
        if key in settings.read:
            problems += [f"{where}{key} {problem}" for problem in _wrong(key, value, settings.read[key])]
        elif key in (fixed := {**_FIXED, **settings.fixed}):
            if value != fixed[key] and not (value is None and fixed[key] in (False, {})):
                problems.append(f"{where}{key} is {shown(value)}, needs {fixed[key]!r}{_HINTS.get(key, '')}")
        elif key not in _IDLE and key not in settings.idle and value is not None:
            problems.append(
                f"{where}{key}={shown(value)} is not known: it may change what the model computes. If the library that "
                "made the file does not read it, take it out"
            )
    fail("config.json describes a model that cannot be converted", problems)
    return {key: _plain(key, given.get(key, default)) for key, default in settings.read.items()}


def part_of(config: Mapping[str, Any], part: str, dict_wins: bool = False) -> tuple[str, Mapping[str, Any]]:
    """Returns the name and the settings of the part that the reference reads. Raises an InteropError for no object."""
    if dict_wins and config.get(f"{part}_dict") is not None:
        part = f"{part}_dict"
    given = config.get(part)
    if given is not None and not isinstance(given, Mapping):
        raise InteropError(f"{part} is {shown(given)}, needs an object")
    return part, given or {}


def require(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises an InteropError for settings that are there with another value than a tower here can have; lists all."""
    fail("config.json describes a model that cannot be converted",
         [f"{key} is {shown(config[key])}, needs {value!r}{_HINTS.get(key, '')}" for key, value in expected.items()
          if config.get(key, value) != value])  # fmt: skip


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names of a classifier's config.json, in the order of their ids; the reference has two by default.

    Raises:
      InteropError: the ids are not 0, 1, 2 and so on.
    """
    names = config.get("id2label")
    if names is None:
        count = config.get("num_labels", 2)
        fail("config.json describes a model that cannot be converted",
             [f"num_labels {problem}" for problem in _wrong("num_labels", count, 0)])  # fmt: skip
        return tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(names, Mapping) or set(names) != {str(i) for i in range(len(names))}:
        raise InteropError(f"id2label is {shown(names)}, needs a name for each of the ids 0, 1, 2, ...")
    return tuple(str(names[str(i)]) for i in range(len(names)))


def architecture(config: Mapping[str, Any], *known: str, hint: str = "") -> str:
    """Returns the class whose weights a config.json describes, by default the first that is known.

    Raises:
      InteropError: another class, or none.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list | tuple) and names else names or known[0]
    if name not in known:
        name = name if isinstance(name, str) else shown(name)
        raise InteropError(f"architectures is {name[:60]}: known are {', '.join(known)}{hint}")
    return name


def shown(value: Any) -> str:
    """A value as a message shows it: cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def typed(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Says which values of a part of open_clip's configuration have another type than their defaults.

    Args:
      where: name of the part.
      given: its settings.
      known: settings that are read, with their defaults; of those whose default is None, only `norm_kwargs` and
        `act_kwargs` are looked at, which are objects.
    """
    problems = []
    for key, value in given.items():
        if key in ("norm_kwargs", "act_kwargs"):
            good = value is None or isinstance(value, Mapping)
            problems += [] if good else [f"{where}.{key} is {shown(value)}, needs an object"]
            if key == "norm_kwargs" and good and value:
                problems += typed(f"{where}.{key}", value, dict(eps=1e-5))
        elif known.get(key) is not None:
            problems += [f"{where}.{key} {problem}" for problem in _wrong(key, value, known[key])]
    return problems


def bounded(config: Any, where: str) -> None:
    """Raises an InteropError for numbers of a model's description that no model has; it names the first.

    For descriptions in our own words and open_clip's, whose types are checked where they are read.

    Args:
      config: mappings and lists of values.
      where: of the description, for the message.
    """
    stack = [(where, "", config)]
    while stack:
        path, key, value = stack.pop()
        if isinstance(value, Mapping):
            stack += [(f"{path}.{name}", str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list | tuple):
            if len(value) > 1000:
                raise InteropError(f"{path} has {len(value):,} entries, at most 1,000 are read")
            stack += [(f"{path}.{i}", key, inner) for i, inner in enumerate(value)]
        elif isinstance(value, int | float):
            many = key.endswith(("depth", "depths", "layers", "stages"))
            largest = 1000 if many else 2**24 if "vocab" in key else 2**20
            if not abs(value) <= largest:
                raise InteropError(f"{path} is {shown(value)}, at most {largest:,} is read")


# ---------------------------------------------------------------------------------------------- values


def _wrong(key: str, value: Any, default: Any) -> list[str]:
    """Says what is wrong with a value, judged by the type of its default."""
    whole = lambda v: isinstance(v, int) and not isinstance(v, bool)
    largest = _LIMITS.get(key, _LIMIT)
    if key in _SIDES and isinstance(value, list | tuple):
        good, need = len(value) == 2 and all(whole(v) and 0 < v <= largest for v in value), "two whole numbers"
    elif isinstance(default, bool):
        good, need = isinstance(value, bool), "true or false"
    elif isinstance(default, str):
        good, need = isinstance(value, str), "a name"
    elif isinstance(default, tuple):
        good = isinstance(value, list | tuple) and len(value) <= _STAGES and all(
            whole(v) and 0 <= v <= largest for v in value
        )  # fmt: skip
        need = f"at most {_STAGES} whole numbers from 0 to {largest:,}"
    elif isinstance(default, float):
        good = (whole(value) or isinstance(value, float)) and 0 <= value <= largest  # not NaN
        need = f"a number from 0 to {largest:,}"
    elif default is None and value is None:
        good, need = True, ""
    else:
        good, need = whole(value) and 0 < value <= largest, f"a whole number from 1 to {largest:,}"
    return [] if good else [f"is {shown(value)}, needs {need}"]


def _plain(key: str, value: Any) -> Any:
    """The value as it is used: lists are tuples, equal sides one number."""
    if isinstance(value, list | tuple):
        return value[0] if key in _SIDES and value[0] == value[1] else tuple(value)
    return value
