"""List the parameters of a recipe: path, shape, and how the optimizer's rules treat each of them.

python -m xmodal params --config configs/demo.py
python -m xmodal params --config configs/clip.py:B16 --match 'image/trunk/.*/bias' \
    --config.data.inputs.text.tokenizer=data_pipelines/emoji/tokenizer.json

A pattern matches whole paths, as in `optimizer.rules`, `mesh.rules` and `init_from_except`. Nothing is allocated.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]", help="the recipe")
    parser.add_argument("--match", metavar="REGEX", help="only the parameters that this pattern matches")


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    import math

    from xmodal.config import load_config
    from xmodal.reporting.summary import print_table

    params, settings = _settings(load_config(args.config, args.overrides))
    paths = list(params) if args.match is None else _matching(args.match, list(params))
    sizes = {path: math.prod(params[path].shape) for path in params}
    share = lambda s: f"{s[0]:.3g} to {s[-1]:.3g}" if isinstance(s, tuple) else f"{s:.3g}"
    print_table(
        f"{len(paths):,} of {len(params):,} arrays, {sum(sizes[path] for path in paths):,} of "
        f"{sum(sizes.values()):,} parameters",
        ["path", "shape", "parameters", "method", "lr x", "weight decay", "rule"],
        [
            [
                path, str(list(params[path].shape)), sizes[path], settings[path].method,
                share(settings[path].lr), f"{settings[path].weight_decay:g}", settings[path].rule or "(default)",
            ]
            for path in paths
        ],
    )  # fmt: skip


def _settings(config) -> tuple[dict, dict]:
    """Returns the shapes of all parameters and the optimizer's settings of each, by path."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # shapes need no accelerator, which another run may be using
    from data_pipelines.modalities import inputs_of
    from xmodal.distributed.mesh import make_mesh
    from xmodal.paths import flatten_paths
    from xmodal.training.optimizer import settings_of
    from xmodal.training.providers import open_providers
    from xmodal.training.task import abstract_params

    mesh = make_mesh(dict(data=-1, fsdp=1, tensor=1), jax.devices()[:1])
    inputs = inputs_of(config.data)
    with jax.set_mesh(mesh):
        config, _, params = abstract_params(config, mesh, inputs, open_providers(config, mesh, inputs))
    return flatten_paths(params), flatten_paths(settings_of(config.optimizer, params))


def _matching(pattern: str, paths: list[str]) -> list[str]:
    import re

    from xmodal.messages import ConfigError, UsageError
    from xmodal.training.optimizer import closest_paths

    try:
        found = [path for path in paths if re.fullmatch(pattern, path)]
    except re.error as error:
        raise UsageError(f"--match {pattern!r} is not a regular expression: {error}") from error
    if not found:
        raise ConfigError(f"--match {pattern!r} matches no parameter.{closest_paths(pattern, paths)}")
    return found
