"""Settles a config: fills in what is left to the inputs and the objectives, and checks the rest."""

import dataclasses
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from data_pipelines.modalities import Image, Inputs, Modality
from data_pipelines.stream.source_columns import source_names
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.config import ConfigError
from xmodal.messages import did_you_mean
from xmodal.models.embed import EMBEDDERS, inputs_of
from xmodal.models.heads import LogitsSpec
from xmodal.objectives import OBJECTIVES, Objective

_IMAGES = ("pixels", "patches")  # what embedders take that an image has


def resolve(config: ConfigDict, inputs: Inputs) -> ConfigDict:
    """Fills in what the config left to its inputs and their tokenizers, and checks what it did not.

    Raises:
      ConfigError: the model does not fit the inputs.
    """
    config = config.copy_and_resolve_references()
    _check_readers(config, inputs)
    for name, tower in config.model.towers.items():
        where, embed = f"model.towers.{name}", tower.get("embed")
        for head, entry in tower.get("heads", {}).items():
            if entry.get("type") == LogitsSpec.type and entry.get("map", LogitsSpec.map) == "linear":
                _fill_vocabulary(entry, _predicted(config.model.towers, name, inputs), f"{where}.heads.{head}")
        if embed:
            _fill_embedder(embed, inputs, f"{where}.embed")
    sources = source_names(config.data.sources)
    settle_objectives(config, lambda cls, entry: cls.settle(entry, _tokenizer_of(cls, entry, config, inputs), sources))
    return config


def _fill_embedder(embed: ConfigDict, inputs: Inputs, where: str) -> None:
    """Takes from an input what it says of the embedder that reads it."""
    spec = EMBEDDERS.get(embed.type)
    known = {field.name: field.default for field in dataclasses.fields(spec)} if spec else {}
    modality = inputs.get(embed.get("input", known.get("input")))
    facts = modality.facts() if modality is not None else {}
    if spec and modality is not None and modality.type == Image.type and spec.takes in _IMAGES:
        _check_packing(spec.takes, modality, where)
    for key, fact in facts.items():
        if key in known:
            _fill(embed, key, fact.value, f"{where}.{key}", fact.option, fact.at_least)
    if "vocab_size" in known and "vocab_size" not in facts:
        _fill_vocabulary(embed, None, where)


def _predicted(towers: Mapping[str, Mapping], name: str, inputs: Inputs, seen: tuple[str, ...] = ()) -> Modality | None:
    """The input whose ids the logits of a tower are: what it embeds, or else the last tower that it reads."""
    if (embedded := inputs_of(towers).get(name)) is not None:
        return inputs.get(embedded)
    edges = towers.get(name, {}).get("reads", {})
    order = sorted(edges, key=lambda other: (edges[other].get("order", 0), other))
    reads = [other for other in order[-1:] if other not in seen]
    return next((_predicted(towers, other, inputs, (*seen, name)) for other in reads), None)


def _fill_vocabulary(section: ConfigDict, modality: Modality | None, where: str) -> None:
    """Takes the vocabulary of an input, or leaves that of other ids, such as an image's codes, as it is."""
    fact = modality.facts().get("vocab_size") if modality is not None else None
    if fact is not None:
        _fill(section, "vocab_size", fact.value, f"{where}.vocab_size", fact.option, fact.at_least)
    elif not section.get("vocab_size", 0):
        raise ConfigError(
            f"{where}.vocab_size: these ids are those of no text of data.inputs, so no tokenizer says how many there "
            "are: set it"
        )


def _tokenizer_of(cls: type[Objective], entry: Mapping, config: ConfigDict, inputs: Inputs) -> Tokenizer | None:
    """Returns the tokenizer of the text that an objective reads: its `input`, its tower's, or else the first."""
    tower = entry.get("tower", getattr(cls, "tower", ""))
    names = (entry.get("input"), inputs_of(config.model.towers).get(tower), getattr(cls, "input", None))
    text = next((inputs.texts[name] for name in names if name in inputs.texts), inputs.caption)
    return text.vocabulary if text is not None and (text.tokenizer or "vocabulary" in vars(text)) else None


def settle_objectives(config: ConfigDict, fill: Callable[[type[Objective], ConfigDict], dict]) -> None:
    """Fills in what the objectives leave to something else."""
    for name, entry in config.objectives.items():
        if entry.get("type") in OBJECTIVES:
            try:
                entry.update(fill(OBJECTIVES[entry.type], entry))
            except ValueError as error:
                raise ConfigError(f"objectives.{name}: {error}") from error


def _check_readers(config: ConfigDict, inputs: Inputs) -> None:
    """What files hold must be read by a tower: to read and decode it for nothing costs most."""
    read = inputs_of(config.model.towers)
    for name, modality in inputs.stored.items():
        if name not in read.values():
            raise ConfigError(
                f"no tower of the model reads {modality.where}: leave it out of data.inputs, so that it is neither "
                "asked for nor decoded"
            )
    for tower, name in read.items():
        if name not in inputs and EMBEDDERS[config.model.towers[tower].embed.type].takes in _IMAGES:
            raise ConfigError(f"model.towers.{tower} reads {name!r}, and by data.inputs samples have "
                              f"{', '.join(inputs) or 'nothing'}{did_you_mean(name, inputs)}")  # fmt: skip


def _check_packing(takes: str, image: Image, where: str) -> None:
    """Raises a ConfigError when the data are squares and the tower takes packed patches, or the other way round."""
    packed = image.packing is not None
    if packed != (takes == "patches"):
        makes, takes = ("packed patches", "squares") if packed else ("squares", "packed patches")
        raise ConfigError(
            f"{image.where}.naflex.lengths={image.naflex.lengths} makes {makes}, and {where} takes {takes}: set the "
            "one to patches at most, such as (128, 256), and the other to a tower of presets.naflex; or neither"
        )


def _fill(section: ConfigDict, key: str, value: int, where: str, source: str, at_least: bool = False) -> None:
    given = section.get(key, 0)
    if not given:
        section[key] = value
    elif given < value or (given != value and not at_least):
        raise ConfigError(f"{where} is {given}, but {source} is {value}: set it to 0 to take that, or make them agree")
