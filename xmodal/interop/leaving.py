"""As what a model can leave: the checks that an export makes before it writes, on the configuration alone."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.config import make_spec
from xmodal.interop import FAMILIES, OPEN_CLIP, preprocessing
from xmodal.interop.huggingface import family_for
from xmodal.interop.tables import Family, InteropError, fail
from xmodal.models import presets
from xmodal.models.model import ModelSpec

_ALWAYS = ("xmodal", "jax")  # take any model
_SHOWN = 4  # settings named in the line


def as_hf(spec: ModelSpec) -> tuple[Family, dict]:
    """Returns the Hugging Face family of a model and its config.json, without what only the tokenizer knows.

    Raises:
      InteropError: no family has such a model; it says what stands in the way.
    """
    family = family_for(spec)
    return family, family.to_config(spec)


def as_open_clip(spec: ModelSpec, image: Mapping[str, Any]) -> tuple[Family, dict]:
    """Returns open_clip's kind of a model and its open_clip_config.json, without what only the tokenizer knows.

    Args:
      spec: the model.
      image: `data.image`.

    Raises:
      InteropError: open_clip has no such model or preparation of images.
    """
    family = next((f for f in OPEN_CLIP.values() if f.fits(spec)), None)
    if family is None:
        raise InteropError(
            "open_clip builds only CLIP's towers itself; SigLIP's image tower comes from timm by the name of a "
            "published size. Export with --to hf or --to jax"
        )
    return family, dict(model_cfg=family.to_config(spec), preprocess_cfg=preprocessing.to_open_clip(image))


def leaves_as(config: ConfigDict, paths: Collection[str]) -> str:
    """Says in one line as what the model of a recipe can leave, and what the nearest other format would need.

    Args:
      config: of the recipe.
      paths: of its parameters, "objectives/contrastive/logit_scale" among them.
    """
    spec = _spec(config)
    formats, needs = _formats(spec, config, paths)
    more = sorted(spec.towers.keys() - {"image", "text"})
    without = f" (both without {', '.join(more)})" if formats and more else ""
    only = "" if formats else " only"
    names = [f"{kind} {family}".strip() for kind, family in formats.items()]
    line = ", ".join([*names, *_ALWAYS]) if not without else f"{', '.join(names)}{without}, {', '.join(_ALWAYS)}"
    return "; ".join([line + only, *needs])


def target(config: ConfigDict, paths: Collection[str]) -> str:
    """Returns the format in which a recipe's model serves most users: hf or open_clip where it can, else xmodal."""
    formats, _ = _formats(_spec(config), config, paths)
    return next(iter(formats), "xmodal")


def _spec(config: ConfigDict) -> ModelSpec:
    return make_spec(ModelSpec, presets.without_lora(config.model), where="model")


def _formats(spec: ModelSpec, config: ConfigDict, paths: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Returns {format: its family of models} of what other libraries can read, and what stands in the way of others."""
    formats, needs = {}, []
    try:
        family, _ = as_hf(spec)
        _check_objective(family, spec, paths)
        formats["hf"] = family.model_type
    except InteropError:
        needs.append(_nearest(spec) or "hf has no model of such towers")
    try:
        family, _ = as_open_clip(spec, config.data.image)
        _check_objective(family, spec, paths)
        formats["open_clip"] = ""
    except InteropError as error:
        if formats == {"hf": "clip"}:  # of any other family it is plain that open_clip has none
            needs.append(f"open_clip would need: {_needed(error)}")
    return formats, needs


def _check_objective(family: Family, spec: ModelSpec, paths: Collection[str]) -> None:
    wanted = {entry.path for entry in family.table(spec) if entry.path.startswith("objectives/")}
    fail(f"{family.architecture} has parameters that this run does not train", sorted(wanted - set(paths)))


def _nearest(spec: ModelSpec) -> str:
    """What stands between a model and the family of which it lacks least; "" when none has such towers."""
    found = []
    for family in FAMILIES.values():
        try:
            family.to_config(spec)
        except InteropError as error:
            lines = str(error).splitlines()
            another = any("missing: " in line or "embed: needs a" in line for line in lines)  # a tower of another kind
            if len(lines) > 1 and not another:
                found.append((len(lines), f"hf {family.model_type} would need: {_needed(error)}"))
        except (AttributeError, IndexError, KeyError):  # it has other towers than this family looks at
            continue
    return min(found, key=lambda pair: pair[0])[1] if found else ""


def _needed(error: InteropError) -> str:
    """The settings in which an error lists differences, the first few by name; its first sentence without a list."""
    first, *lines = str(error).splitlines()
    if not lines:
        return first
    names = list(dict.fromkeys(re.sub(r"/\d+", "", line.strip().partition(":")[0]) for line in lines))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "other " + ", ".join(names[:_SHOWN]) + more
