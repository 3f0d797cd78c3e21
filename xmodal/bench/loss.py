"""Memory of losses over all pairs: what XLA reserves per device for value and gradient, from compilation alone.

With --fine, the objectives that compare words with patches: as they are, and `naive`, with the similarities of all
tokens of the global batch in memory at once, as their formulas read. SPARC compares nothing between samples.
"""

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

BATCHES = (2048, 4096, 8192, 16_384, 32_768)
FINE_BATCHES = (128, 256, 512, 1024, 2048, 4096)


class Case(NamedTuple):
    """A column: a kind of objective and how it is computed; `naive` is `plain` without slices."""

    kind: str
    form: str


CASES = tuple(Case(kind, form) for kind in ("softmax", "sigmoid") for form in ("plain", "ring"))
FINE_CASES = (*(Case(kind, form) for kind in ("filip", "flair") for form in ("naive", "ring")), Case("sparc", ""))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's arguments."""
    parser.add_argument(
        "--fine", action="store_true", help="FILIP, FLAIR and SPARC instead of CLIP's and SigLIP's losses"
    )
    parser.add_argument("--devices", type=int, default=8, help="CPU devices to compile for")
    parser.add_argument("--dim", type=int, default=0, help="width of the embeddings; 128, or 256 with --fine")
    parser.add_argument("--patches", type=int, default=196, help="of an image, with --fine")
    parser.add_argument("--words", type=int, default=77, help="of a caption, with --fine")
    parser.add_argument("--batches", type=int, nargs="+", default=None, help="global batch sizes")


def measure(args: argparse.Namespace) -> tuple[str, list[str], list[list]]:
    """Compiles each loss at each size; returns (title, columns, rows)."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    return compiled(args)


def compiled(args: argparse.Namespace) -> tuple[str, list[str], list[list]]:
    """The same, where there are devices already."""
    import jax
    from jax.sharding import AxisType

    mesh = jax.make_mesh((args.devices, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    cases, dim = FINE_CASES if args.fine else CASES, args.dim or (256 if args.fine else 128)
    rows, before = [], {}
    for batch in args.batches or (FINE_BATCHES if args.fine else BATCHES):
        row: list = [batch]
        for case in cases:
            mib = _temp_mib(mesh, case, batch, dim, args.patches, args.words)
            row += [round(mib, 1), f"{mib / before[case]:.1f}x" if case in before else ""]
            before[case] = mib
        rows.append(row)
    columns = ["global batch"]
    for case in cases:
        name = " ".join(case).strip()
        columns += [f"{name} MiB", f"{name} growth"]
    title = f"temporary memory per device, value and gradient, {args.devices} devices, width {dim}"
    return title + (f", {args.patches} patches, {args.words} words" if args.fine else ""), columns, rows


def _temp_mib(mesh: Any, case: Case, batch: int, dim: int, patches: int, words: int) -> float:
    """Temporary memory of one device in MiB, as XLA's compiler reports it."""
    import jax
    import jax.numpy as jnp

    from xmodal.objectives import OBJECTIVES

    form = dict(naive="plain").get(case.form, case.form)
    objective = OBJECTIVES[case.kind](**(dict(form=form) if form else {}))
    split = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=split)
    lengths = {"image.local": patches, "text.local": words}
    inputs = {need: array(*([lengths[need]] if need in lengths else []), dim) for need in objective.needs}
    valid = {need: array(lengths[need]) for need in objective.needs if need in lengths}
    identity = {name: array(2, dtype=jnp.uint32) for name in ("key_id", "caption_id")}

    def loss(inputs, params, valid, identity):
        outputs = {need: {"x": x, "valid": valid[need]} if need in valid else x for need, x in inputs.items()}
        total, weight, *_ = objective(outputs, identity, params, mesh)
        return total / weight

    with jax.set_mesh(mesh), _unsliced() if case.form == "naive" else contextlib.nullcontext():
        params = jax.eval_shape(lambda: objective.init(jax.random.key(0), _towers(dim)))
        step = jax.jit(jax.grad(loss, argnums=(0, 1)), out_shardings=(split, None))
        found = step.lower(inputs, params, valid, identity).compile().memory_analysis()
    return found.temp_size_in_bytes / 2**20


def _towers(dim: int) -> Any:
    """The least that objectives want to know of a model: two towers of this width."""
    from xmodal.config import make_spec
    from xmodal.models import presets
    from xmodal.models.model import ModelSpec

    image = presets.image_tower(dim, 0, 1, patch_size=16, embed=dict(image_size=16))
    text = presets.text_tower(dim, 0, 1, embed=dict(vocab_size=2, length=2))
    return make_spec(ModelSpec, presets.dual_tower(image=image, text=text), where="model")


@contextlib.contextmanager
def _unsliced() -> Iterator[None]:
    """Lets a slice hold whatever there is: one product of all tokens."""
    from xmodal.objectives import fine_grained

    usual = fine_grained.SLICE
    fine_grained.SLICE = 2**62
    try:
        yield
    finally:
        fine_grained.SLICE = usual
