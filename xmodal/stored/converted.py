"""What folders of other libraries share: a model of a reference, in this project's terms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.text.tokenizers import Tokenizer
from xmodal.config import make_spec, with_inputs, with_new_options
from xmodal.interop.encoders import IMAGE, TEXT
from xmodal.interop.tables import Family, InteropError
from xmodal.interop.tokenizer_files import read_tokenizer
from xmodal.interop.weights import open_weights
from xmodal.models.embed import PatchSpec
from xmodal.models.model import Functional, ModelSpec
from xmodal.stored.base import TOKENIZER, Stored, has_text


def square_side(embed: PatchSpec, folder: Path) -> int:
    """Side of the images that an embedder takes. Raises an InteropError where they are not square."""
    if not isinstance(embed.image_size, int):
        raise InteropError(
            f"{folder}: pictures of {embed.image_size} pixels are not square, which is all that is prepared here"
        )
    return embed.image_size


def converted(
    origin: Path, folder: Path, name: str, family: Family, model: ConfigDict, image: Any,
    texts: Callable[[Tokenizer], tuple[Tokenizer, dict]] | None = None,
) -> Stored:  # fmt: skip
    """A model of a reference in our terms.

    `image` gives the options of the image input for an embedder; `texts` the tokenizer as the reference uses it, and
    options of the text input, where not all that the reference does to a text is in the tokenizer's file.
    """
    spec = make_spec(ModelSpec, model, where=f"{folder}: model")
    try:
        Functional.build(spec)
        params = family.to_params(open_weights(folder, name), spec)
    except ValueError as error:
        raise InteropError(f"{folder}: {error}") from None
    params.setdefault("objectives", {})
    objective = dict(family.objective)
    config, inputs = with_new_options(ConfigDict(dict(model=model, data={}, objectives={}))), {}
    if objective:
        config.objectives = dict(contrastive=objective | dict(between=(IMAGE, TEXT), weight=1.0))
    if image is not None:
        inputs[IMAGE] = dict(type="image") | image(spec.towers[IMAGE].embed)
    tokenizers = {}
    if has_text(config):
        tokenizer, length = read_tokenizer(folder, cased=family.cased)
        embed = next(t.embed for t in spec.towers.values() if t.embed is not None and t.embed.decodes)
        if tokenizer.vocab_size > embed.vocab_size:
            raise InteropError(
                f"{folder}: tokenizer.json has ids up to {tokenizer.vocab_size - 1}, and the model has "
                f"{embed.vocab_size} tokens: it is another model's tokenizer"
            )
        text = dict(tokenizer=TOKENIZER, length=min(length or embed.length, embed.length), lower=False, clean="none")
        if texts is not None:
            tokenizer, more = texts(tokenizer)
            text |= more
        tokenizers[TEXT], inputs[TEXT] = tokenizer, dict(type="text") | text
    config.data.inputs = inputs
    return Stored(with_inputs(config, str(origin)), params, tokenizers, str(origin))
