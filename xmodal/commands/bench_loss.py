"""Memory of the contrastive losses: what XLA reserves per device for value and gradient, from compilation alone."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's arguments."""
    parser.add_argument("--devices", type=int, default=8, help="CPU devices to compile for")
    parser.add_argument("--dim", type=int, default=128, help="width of the embeddings")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[2048, 4096, 8192, 16_384, 32_768],
        help="global batch sizes",
    )


def measure(args: argparse.Namespace) -> tuple[str, list[str], list[list]]:
    """Compiles each loss at each size; returns (title, columns, rows)."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    from jax.sharding import AxisType

    mesh = jax.make_mesh((args.devices, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows, before = [], {}
    for batch in args.batches:
        row: list = [batch]
        for kind in ("softmax", "sigmoid"):
            for form in ("plain", "ring"):
                mib = _temp_mib(mesh, kind, form, batch, args.dim)
                growth = f"{mib / before[kind, form]:.1f}x" if (kind, form) in before else ""
                before[kind, form] = mib
                row += [round(mib, 1), growth]
        rows.append(row)
    columns = ["global batch"]
    for name in ("softmax plain", "softmax ring", "sigmoid plain", "sigmoid ring"):
        columns += [f"{name} MiB", f"{name} growth"]
    title = f"temporary memory per device, value and gradient, {args.devices} devices, width {args.dim}"
    return title, columns, rows


def _temp_mib(mesh, kind: str, form: str, batch: int, dim: int) -> float:
    """Temporary memory of one device in MiB, as XLA's compiler reports it."""
    import jax
    import jax.numpy as jnp

    from xmodal.objectives import OBJECTIVES

    objective = OBJECTIVES[kind](form=form)
    split = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    embedding = jax.ShapeDtypeStruct((batch, dim), jnp.float32, sharding=split)
    identity = jax.ShapeDtypeStruct((batch, 2), jnp.uint32, sharding=split)

    def loss(x, y, params, keys, captions):
        outputs = {"image.pooled": x, "text.pooled": y}
        total, weight, _ = objective(outputs, {"key_id": keys, "caption_id": captions}, params, mesh)
        return total / weight

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), out_shardings=(split, split, None))
        compiled = step.lower(embedding, embedding, objective.init(), identity, identity).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20
