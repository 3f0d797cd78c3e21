"""Low-rank updates become part of the kernels: what leaves a run needs no adapters and costs nothing more to use."""

import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from xmodal.config import make_spec
from xmodal.models import presets
from xmodal.models.model import ModelSpec
from xmodal.paths import flatten_paths

_A, _B = "/lora_a", "/lora_b"


def merge_lora(config: ConfigDict, params: dict) -> tuple[ConfigDict, dict]:
    """Returns config and parameters of the same function with kernel + alpha / rank * lora_a @ lora_b as kernels.

    Args:
      config: of a run; the section `model` says the scales.
      params: {tower: ..., "objectives": ...}.
    """
    arrays = flatten_paths(params)
    names = [path.removesuffix(_A) for path in arrays if path.endswith(_A)]
    if not names:
        return config, params
    spec = make_spec(ModelSpec, config.model, where="model")
    for name in names:
        a, b, kernel = (np.asarray(arrays[name + end]) for end in (_A, _B, "/kernel"))
        update = _scale(spec, name) * np.matmul(a.astype(np.float64), b.astype(np.float64))
        arrays[f"{name}/kernel"] = (kernel + update).astype(kernel.dtype)
    config = config.copy_and_resolve_references()
    config.model = presets.without_lora(config.model)
    kept = {path: array for path, array in arrays.items() if not path.endswith((_A, _B))}
    return config, {"objectives": {}} | unflatten_dict(kept, sep="/")


def _scale(spec: ModelSpec, name: str) -> float:
    tower, _, _, layer, sublayer, *_ = name.split("/")  # image/trunk/layers/0/0/attn/query
    return spec.towers[tower].trunk.pattern[int(layer)][int(sublayer)].lora.scale
