"""Opens the providers of a config, in the order in which a step asks them."""

import functools
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from data_pipelines.modalities import Inputs, OtherText, Reread
from data_pipelines.stream.contents import contents
from xmodal.building import build_model
from xmodal.config import ConfigError, build_entry, did_you_mean
from xmodal.models.embed import inputs_of
from xmodal.models.model import Functional
from xmodal.objectives import OBJECTIVES, Objective
from xmodal.objectives.providers import PROVIDERS, Opening, Provider
from xmodal.objectives.providers.base import ordered
from xmodal.stored.base import Stored
from xmodal.stored.opening import open_stored
from xmodal.training.settle import resolve

Providers = dict[str, Provider]


def open_providers(config: ConfigDict, mesh: jax.sharding.Mesh, inputs: Inputs) -> Providers:
    """Opens `config.providers`.

    Args:
      config: of the run.
      mesh: where frozen parameters go.
      inputs: of the samples, each text with its tokenizer.

    Raises:
      ConfigError: an entry that is asked for and that nothing gives, a provider of which nothing is asked, or one that
        cannot be opened or does not fit the run.
    """
    readers = _readers(config)
    specs = {name: build_entry(PROVIDERS, entry, f"providers.{name}") for name, entry in config.providers.items()}
    for name, spec in specs.items():
        readers |= {need: f"providers.{name}" for need in spec.needs if need not in readers}
    asked = frozenset(readers)
    stored, model = (lambda where: _stored(config, where)), (lambda: _model(config, inputs))
    run = Opening(config, mesh, inputs, stored, model)
    opened: Providers = {}
    for name, spec in specs.items():
        opened[name] = spec.open(name, asked, run)
        if not opened[name].gives & asked:
            raise ConfigError(f"providers.{name}: nothing reads what it gives. Add an objective that does, such as "
                              "one of type distillation or feature_matching, or leave it out")  # fmt: skip
    outputs = model().spec.outputs if opened else ()
    try:
        ordering = ordered(opened, _entries(config, host_inputs(inputs, opened)), outputs)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    _check_asked(config, readers, frozenset().union(*(p.gives for p in opened.values())))
    return ordering


def _readers(config: ConfigDict) -> dict[str, str]:
    """{entry of the batch: the first objective or tower that reads it, by its path in the config}."""
    readers: dict[str, str] = {}
    for name, entry in config.objectives.items():
        kind = OBJECTIVES.get(entry.get("type"))
        if kind is None or kind.asks is Objective.asks:  # building the objectives says what is wrong with others
            continue
        asks = build_entry(OBJECTIVES, entry, f"objectives.{name}").asks
        readers |= {ask: f"objectives.{name}" for ask in sorted(asks) if ask not in readers}
    embeds = inputs_of(config.model.towers).items()
    return readers | {entry: f"model.towers.{tower}" for tower, entry in embeds if entry not in readers}


def _check_asked(config: ConfigDict, readers: dict[str, str], given: frozenset[str]) -> None:
    """Raises a ConfigError where an objective asks for what no provider gives."""
    for entry, where in readers.items():
        provider = entry.partition(".")[0]
        if not where.startswith("objectives.") or entry in given:
            continue
        if provider in config.providers:
            raise ConfigError(f"{where} needs {entry!r}, which providers.{provider} does not give")
        hint = did_you_mean(provider, config.providers)
        raise ConfigError(
            f"{where} needs {entry!r} of a provider: add providers.{provider}, such as dict(type='teacher', "
            f"model=...) with a run, an imported folder or \"hf:DIR\", or dict(type='ema') for the average of the "
            f"run's weights.{hint}"
        )


def _stored(config: ConfigDict, where: str) -> Stored:
    try:
        return open_stored(where)
    except ValueError as error:
        names = [name for name, entry in config.providers.items() if entry.get("model") == where]
        raise ConfigError(f"providers.{', '.join(names)}.model={where}: {error}") from error


def _model(config: ConfigDict, inputs: Inputs) -> Functional:
    return build_model(resolve(config, inputs))


def _entries(config: ConfigDict, inputs: Inputs) -> frozenset[str]:
    """Names of the arrays that the data give."""
    return frozenset(array.name for array in contents(config.data, inputs, config.batch_size))


def host_texts(providers: Mapping[str, Provider]) -> dict[str, OtherText]:
    """Returns the captions that the stream prepares for all providers, by the name of their ids in the batch."""
    return functools.reduce(lambda all_, p: all_ | dict(p.texts), providers.values(), {})


def host_inputs(inputs: Inputs, providers: Mapping[str, Provider]) -> Inputs:
    """Returns the inputs of the batches of a run: those of its samples, and the captions that its providers read."""
    return inputs.with_(*(Reread(name=name, how=how) for name, how in host_texts(providers).items()))


def fingerprints(providers: Providers) -> dict[str, str]:
    """Returns {provider: fingerprint}, which a checkpoint keeps."""
    return {name: provider.fingerprint for name, provider in providers.items()}
