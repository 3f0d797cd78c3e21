"""Settles a config: fills in what is left to the data, the tokenizer and the objectives, and checks the rest."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from data_pipelines.images.naflex import Naflex
from data_pipelines.samples import has_images
from data_pipelines.stream.source_columns import source_names
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.config import ConfigError
from xmodal.models.embed import EMBEDDERS, TokenSpec, inputs_of
from xmodal.models.heads import LogitsSpec
from xmodal.objectives import OBJECTIVES, Objective


def resolve(config: ConfigDict, tokenizer: Tokenizer) -> ConfigDict:
    """Fills in what the config left to the data and the tokenizer, and checks what it did not.

    Raises:
      ConfigError: the model does not fit the tokenizer or the data.
    """
    config = config.copy_and_resolve_references()
    _check_images(config)
    for name, tower in config.model.towers.items():
        where, embed = f"model.towers.{name}", tower.get("embed")
        for head, entry in tower.get("heads", {}).items():
            if entry.get("type") == LogitsSpec.type and entry.get("map", LogitsSpec.map) == "linear":
                texts = _predicts_texts(config.model.towers, name)
                _fill_vocabulary(entry, tokenizer if texts else None, f"{where}.heads.{head}")
        if not embed:
            continue
        takes = EMBEDDERS[embed.type].takes if embed.type in EMBEDDERS else ""
        if takes in ("pixels", "patches"):
            _check_packing(takes, config.data.image, where)
        if takes == "patches":
            packing = Naflex.of(config.data.image)
            _fill(embed, "patch_size", packing.patch_size, f"{where}.embed.patch_size", "data.image.naflex.patch_size")
            _fill(embed, "length", packing.length, f"{where}.embed.length", "data.image.naflex.length")
        elif takes == "pixels":
            _fill(embed, "image_size", config.data.image.size, f"{where}.embed.image_size", "data.image.size")
        elif takes == "ids":
            own = embed.get("input", TokenSpec.input) == TokenSpec.input
            _fill_vocabulary(embed, tokenizer if own else None, f"{where}.embed")
            if own:
                length = config.data.text.length
                _fill(embed, "length", length, f"{where}.embed.length", "data.text.length", at_least=True)
    sources = source_names(config.data.sources)
    settle_objectives(config, lambda cls, entry: cls.settle(entry, tokenizer, sources))
    return config


def _predicts_texts(towers: Mapping[str, Mapping], name: str, seen: tuple[str, ...] = ()) -> bool:
    """Whether the logits of a tower are those of `data.text`: what it embeds, or else the last tower that it reads."""
    if (embedded := inputs_of(towers).get(name)) is not None:
        return embedded == TokenSpec.input
    edges = towers.get(name, {}).get("reads", {})
    order = sorted(edges, key=lambda other: (edges[other].get("order", 0), other))
    reads = [other for other in order[-1:] if other not in seen]
    return any(_predicts_texts(towers, other, (*seen, name)) for other in reads)


def _fill_vocabulary(section: ConfigDict, tokenizer: Tokenizer | None, where: str) -> None:
    """Takes the tokenizer's vocabulary, or leaves that of other ids (None), such as an image's codes, as it is."""
    if tokenizer is not None:
        _fill(section, "vocab_size", tokenizer.vocab_size, f"{where}.vocab_size", "the tokenizer's", at_least=True)
    elif not section.get("vocab_size", 0):
        raise ConfigError(f"{where}.vocab_size: these ids are not those of data.text, so the tokenizer cannot say how "
                          "many there are: set it")  # fmt: skip


def settle_objectives(config: ConfigDict, fill: Callable[[type[Objective], ConfigDict], dict]) -> None:
    """Fills in what the objectives leave to something else."""
    for name, entry in config.objectives.items():
        if entry.get("type") in OBJECTIVES:
            try:
                entry.update(fill(OBJECTIVES[entry.type], entry))
            except ValueError as error:
                raise ConfigError(f"objectives.{name}: {error}") from error


def _check_images(config: ConfigDict) -> None:
    """Samples have images if a tower reads them, and only then: to read and decode them for nothing costs most."""
    readers = [name for name, kind in inputs_of(config.model.towers).items() if kind == "image"]
    images = has_images(config.data.modalities)
    if readers and not images:
        raise ConfigError(f"model.towers.{readers[0]} reads images, and by data.modalities={config.data.modalities} "
                          "samples have none")  # fmt: skip
    if images and not readers:
        raise ConfigError("no tower of the model reads images: set data.modalities=('text',), which neither asks for "
                          "nor decodes them")  # fmt: skip


def _check_packing(takes: str, image: ConfigDict, where: str) -> None:
    """Raises a ConfigError when the data are squares and the tower takes packed patches, or the other way round."""
    packed = bool(image.naflex.lengths)
    if packed != (takes == "patches"):
        makes, takes = ("packed patches", "squares") if packed else ("squares", "packed patches")
        raise ConfigError(
            f"data.image.naflex.lengths={image.naflex.lengths} makes {makes}, and {where}.embed takes {takes}: set the "
            "one to patches at most, such as (128, 256), and the other to a tower of presets.naflex; or neither"
        )


def _fill(section: ConfigDict, key: str, value: int, where: str, source: str, at_least: bool = False) -> None:
    given = section.get(key, 0)
    if not given:
        section[key] = value
    elif given < value or (given != value and not at_least):
        raise ConfigError(f"{where} is {given}, but {source} is {value}: set it to 0 to take that, or make them agree")
