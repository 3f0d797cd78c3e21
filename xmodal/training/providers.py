"""Opens the providers of a config, in the order in which a step asks them."""

import functools

import jax
from ml_collections import ConfigDict

from data_pipelines.text.tokenizers import Tokenizer
from xmodal.config import ConfigError, did_you_mean, make_spec
from xmodal.interop.folder import Stored, open_stored
from xmodal.models.embed import inputs_of
from xmodal.models.model import OUTPUTS, Functional, ModelSpec
from xmodal.objectives import OBJECTIVES, Objective
from xmodal.objectives.providers import PROVIDERS, Opening, Provider
from xmodal.objectives.providers.base import ordered
from xmodal.training.settle import resolve
from xmodal.training.startup import host_arrays
from xmodal.training.task import build_entry

Providers = dict[str, Provider]


def open_providers(config: ConfigDict, mesh: jax.sharding.Mesh, tokenizer: Tokenizer) -> Providers:
    """Opens `config.providers`.

    Args:
      config: of the run.
      mesh: where frozen parameters go.
      tokenizer: of the run's texts.

    Raises:
      ConfigError: an entry that is asked for and that nothing gives, a provider of which nothing is asked, or one that
        cannot be opened or does not fit the run.
    """
    readers = _readers(config)
    specs = {name: build_entry(PROVIDERS, entry, f"providers.{name}") for name, entry in config.providers.items()}
    for name, spec in specs.items():
        readers |= {need: f"providers.{name}" for need in spec.needs if need not in readers}
    asked = frozenset(readers)
    stored, model = (lambda where: _stored(config, where)), (lambda: _model(config, tokenizer))
    run = Opening(config, mesh, tokenizer, frozenset(host_arrays(config, {})), stored, model)
    opened: Providers = {}
    for name, spec in specs.items():
        opened[name] = spec.open(name, asked, run)
        if not opened[name].gives & asked:
            raise ConfigError(f"providers.{name}: nothing reads what it gives. Add an objective that does, such as "
                              "one of type distillation or feature_matching, or leave it out")  # fmt: skip
    texts = {name: text for provider in opened.values() for name, text in provider.texts.items()}
    outputs = [f"{tower}.{what}" for tower in config.model.towers for what in OUTPUTS]
    try:
        ordering = ordered(opened, host_arrays(config, texts), outputs)
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


def _model(config: ConfigDict, tokenizer: Tokenizer) -> Functional:
    return Functional.build(make_spec(ModelSpec, resolve(config, tokenizer).model, where="model"))


def frozen_params(providers: Providers) -> dict:
    """Returns the frozen parameters that a step takes: {provider: params}, of those that have some."""
    return {name: provider.params for name, provider in providers.items() if provider.params}


def host_texts(providers: Providers) -> dict:
    """Returns the captions that the stream prepares for all providers, by the name of their ids in the batch."""
    return functools.reduce(lambda all_, p: all_ | dict(p.texts), providers.values(), {})


def facts_of(providers: Providers) -> dict:
    """Returns what all providers say of themselves, by name."""
    return functools.reduce(lambda all_, p: all_ | dict(p.facts), providers.values(), {})


def fingerprints(providers: Providers) -> dict[str, str]:
    """Returns {provider: fingerprint}, which a checkpoint keeps."""
    return {name: provider.fingerprint for name, provider in providers.items()}
