"""Which exported models transformers' zero-shot-image-classification pipeline cannot serve, and what does."""

from data_pipelines.text.preparation import Preparation
from xmodal.interop.tables import Family
from xmodal.interop.tokenizer_files import is_gemma
from xmodal.stored.base import Stored

_LENGTH = 64  # tokens to which the pipeline pads the texts of every SigLIP; it passes on no other length


def pipeline_misfit(family: Family, stored: Stored) -> str:
    """Says why the pipeline gives an error or other probabilities for a Hugging Face export; "" when it works.

    Args:
      family: of the export.
      stored: the model.
    """
    if "siglip" not in family.model_type or stored.tokenizer is None:
        return ""
    if (length := stored.config.data.inputs.text.length) != _LENGTH:
        return (
            f"transformers' zero-shot-image-classification pipeline pads every SigLIP's texts to {_LENGTH} tokens, "
            f"and this model takes {length}: use the model and its tokenizer directly, as in README.md"
        )
    if family.tokenizer_class and not is_gemma(stored.tokenizer, Preparation.of(stored.config.data.inputs.text).lowers):
        return (
            f"transformers' zero-shot-image-classification pipeline makes a {family.tokenizer_class}, which is "
            "Gemma's: hand it tokenizer=PreTrainedTokenizerFast.from_pretrained(DIR), as in README.md"
        )
    return ""
