"""As what a model can leave: the checks that an export makes before it writes, on the configuration alone."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.config import make_spec
from xmodal.interop import FAMILIES, OPEN_CLIP, preprocessing
from xmodal.interop.huggingface import family_for
from xmodal.interop.tables import Family, InteropError
from xmodal.models import presets
from xmodal.models.model import ModelSpec

_ALWAYS = ("xmodal", "jax")  # take any model
_SHOWN = 4  # settings named in the line
# A family that looks at towers of another kind than it knows lacks what it looks for; a start-up line never ends a run.
_NOT_OF_IT = (AttributeError, IndexError, KeyError)


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
      image: the image input; None of a model without one.

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
    line = ", ".join(f"{kind} {family}".strip() for kind, family in formats.items())
    if formats and (more := sorted(spec.towers.keys() - {"image", "text"})):
        line += f" (without {', '.join(more)})"
    line = ", ".join([line, *_ALWAYS]) if formats else ", ".join(_ALWAYS) + " only"
    note = objective_note(family_for(spec), config.objectives) if "hf" in formats else ""
    return "; ".join([line, *needs, *([note] if note else [])])


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
    except (InteropError, *_NOT_OF_IT):
        needs.append(_nearest(spec) or "hf has no model of such towers")
    else:
        if missing := _untrained(family, spec, paths):
            needs.append(f"hf {family.model_type} would need {', '.join(missing)}, which this run does not train")
        else:
            formats["hf"] = family.model_type
    try:
        family, _ = as_open_clip(spec, config.data.inputs.get("image"))
    except (InteropError, *_NOT_OF_IT) as error:
        if formats == {"hf": "clip"}:  # of any other family it is plain that open_clip has none
            needs.append(f"open_clip {_needed(error)}")
    else:
        formats |= {} if _untrained(family, spec, paths) else {"open_clip": ""}
    return formats, needs


def objective_note(family: Family, objectives: Mapping[str, Any]) -> str:
    """Says where a format computes probabilities in another way than a model was trained; "" where it does not.

    Args:
      family: of the export.
      objectives: of the config.
    """
    ours, theirs = objectives.get("contrastive", {}).get("type"), family.objective.get("type")
    if ours == theirs or not {ours, theirs} <= {"softmax", "sigmoid"}:
        return ""
    return (
        f"the probabilities of {family.architecture} are a {theirs}'s, and this model is trained with a {ours} loss: "
        "its embeddings are the same, its probabilities are not"
    )


def _untrained(family: Family, spec: ModelSpec, paths: Collection[str]) -> list[str]:
    """Parameters of objectives that a family has and a run does not."""
    wanted = {entry.path for entry in family.table(spec) if entry.path.startswith("objectives/")}
    return sorted(wanted - set(paths))


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
                found.append((len(lines), f"hf {family.model_type} {_needed(error)}"))
        except _NOT_OF_IT:
            continue
    return min(found, key=lambda pair: pair[0])[1] if found else ""


def _needed(error: Exception) -> str:
    """What an error asks for: the first few settings that it lists, or else its sentence."""
    first, *lines = str(error).splitlines()
    if not lines:
        return f"cannot hold it: {first}"
    names = list(dict.fromkeys(re.sub(r"/\d+", "", line.strip().partition(":")[0]) for line in lines))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "would need other " + ", ".join(names[:_SHOWN]) + more
