"""The text side of open_clip's models: the tower, where it pools, and what its tokenizers do to texts.

Every setting of open_clip's `text_cfg` is read, or known to have no effect on such a model, or refused by its name.
"""

from collections.abc import Mapping
from typing import Any

from data_pipelines.text.preparation import Preparation
from data_pipelines.text.tokenizers import Tokenizer
from xmodal.interop.clip import TEXT_TOWER
from xmodal.interop.tables import InteropError
from xmodal.interop.tokenizer_files import with_special_tokens
from xmodal.models import presets
from xmodal.models.tower import TowerSpec

# Settings that are understood, with open_clip's defaults.
READ = dict(
    context_length=77, vocab_size=49408, width=512, heads=8, layers=12, mlp_ratio=4.0, hf_tokenizer_name=None,
    tokenizer_kwargs=None, pool_type="argmax", eos_id=2, no_causal_mask=False, act_kwargs=None, norm_kwargs=None,
)  # fmt: skip
# Settings that have no effect: `pad_id` belongs to a mask that this class does not use, `final_ln_after_pool` is read
# for image towers alone, the others belong to a transformers model, which `hf_model_name` would name.
UNUSED = ("pad_id", "final_ln_after_pool", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type")
# Settings that may be there as long as they have no effect.
IDLE = dict(
    ls_init_value=None, output_tokens=False, block_type=None, qk_norm=False, scaled_cosine_attn=False,
    scale_heads=False, scale_attn_inner=False, scale_attn=False, scale_fc=False, hf_model_name=None, embed_cls=False,
    proj_bias=False, proj_type="linear", tokenizer_mode=None,
)  # fmt: skip
_POOLS = dict(argmax="eos", eos="eos", first="cls", last="last")
_CLEAN = ("whitespace", "lower", "canonicalize")


def problems(words: Mapping[str, Any]) -> list[str]:
    """Says what in the values of a completed `text_cfg` no tower or tokenizer here does."""
    found, pool, kwargs = [], words["pool_type"], words["tokenizer_kwargs"] or {}
    if pool not in _POOLS:
        found.append(f"text_cfg.pool_type={pool!r}, needs one of {', '.join(_POOLS)}")
    elif words["no_causal_mask"] and _POOLS[pool] == "eos":
        found.append(
            f"text_cfg.no_causal_mask=True with pool_type={pool!r}: a tower here that sees its padding does not know "
            "where a text ends; needs 'first' or 'last'"
        )
    if not isinstance(kwargs, Mapping):
        return [*found, f"text_cfg.tokenizer_kwargs={kwargs!r}, needs an object"]
    if (clean := kwargs.get("clean", _CLEAN[0])) not in _CLEAN:
        found.append(f"text_cfg.tokenizer_kwargs.clean={clean!r}, needs one of {', '.join(_CLEAN)}")
    known = ("clean", "strip_sep_token") if words["hf_tokenizer_name"] else ("clean",)
    return found + [f"text_cfg.tokenizer_kwargs.{key}={kwargs[key]!r}" for key in kwargs if key not in known]


def text_tower(words: Mapping[str, Any], embed_dim: int, **changes) -> dict:
    """The text tower of a completed `text_cfg`; `changes` as for `presets.text_tower`."""
    pool, causal = _POOLS[words["pool_type"]], not words["no_causal_mask"]
    # Padding lies behind the text, where a causal tower that pools in front of it never looks; elsewhere it is seen.
    tokens = dict(
        vocab_size=words["vocab_size"], length=words["context_length"], causal=causal,
        mask_padding=causal and pool != "last",
    )  # fmt: skip
    return presets.text_tower(
        words["width"], words["layers"], words["heads"], embed_dim=embed_dim, pool=pool, embed=tokens, **changes
    )


def fixed_tower(text: TowerSpec | None) -> dict:
    """What open_clip fixes of a text tower, among its kinds of pooling the one that `text` has, or else CLIP's."""
    causal, masked = getattr(text and text.embed, "causal", True), getattr(text and text.embed, "mask_padding", True)
    pool = text.pool if text else "eos"
    if pool not in _POOLS.values() or (pool == "eos" and not causal) or masked != (causal and pool != "last"):
        return TEXT_TOWER
    return dict(pool=pool, embed=dict(position="learned", causal=causal, mask_padding=masked))


def pooling(text: TowerSpec) -> dict:
    """The settings of a `text_cfg` that say where a tower pools, but for the end token, which the tokenizer knows."""
    settings = {} if text.pool == "eos" else dict(pool_type={"cls": "first", "last": "last"}[text.pool])
    return settings if text.embed.causal else settings | dict(no_causal_mask=True)


# ---------------------------------------------------------------------------------------------- texts


def read_texts(words: Mapping[str, Any], tokenizer: Tokenizer, sep: str | None) -> tuple[Tokenizer, dict]:
    """Returns the tokenizer as open_clip uses it, and options of the text input.

    Args:
      words: completed `text_cfg`, without `problems`.
      tokenizer: of the folder.
      sep: what the folder calls its separator token, None where it has none.

    Raises:
      InteropError: texts would be pooled at another token, or have another end.
    """
    kwargs, simple = words["tokenizer_kwargs"] or {}, not words["hf_tokenizer_name"]
    prefix, suffix, pad = tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id
    if kwargs.get("strip_sep_token"):
        if (sep_id := tokenizer.id_of(sep)) is None:
            raise InteropError(
                f"text_cfg.tokenizer_kwargs.strip_sep_token=True, and the folder's tokenizer has no separator: {sep!r}"
            )
        prefix, suffix = (tuple(0 if i == sep_id else i for i in ids) for ids in (prefix, suffix))
        pad = 0 if pad == sep_id else pad
    if simple and not fixed_pooling(words):
        pad = 0  # as the tokenizer of OpenAI's models pads, which is used where no other is named
    if (prefix, suffix, pad) != (tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id):
        tokenizer = with_special_tokens(tokenizer, prefix, suffix, pad)
    _check_pooling(words, tokenizer)
    clean = kwargs.get("clean", "lower" if simple else "whitespace")
    return tokenizer, dict(clean=clean, length=words["context_length"])


def fixed_pooling(words: Mapping[str, Any]) -> bool:
    """Whether what a text becomes is the same with any padding."""
    return words["pool_type"] != "last" and not words["no_causal_mask"]


def _check_pooling(words: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    pool, end = words["pool_type"], tokenizer.suffix[-1]
    before = (*tokenizer.prefix, *tokenizer.suffix[:-1])
    if pool == "eos" and (words["eos_id"] != end or end in before):
        raise InteropError(
            f"text_cfg.eos_id={words['eos_id']}: this model pools a text at the first token of that id, and the end "
            f"token of tokenizer.json has the id {end}: texts would be embedded at another token"
        )
    if pool == "argmax":
        # A special token has an id that no text becomes, unless it is put around all texts.
        inside = max({*range(tokenizer.vocab_size)} - {*tokenizer.special_ids}, default=-1)
        if (largest := max(inside, *before, tokenizer.pad_id)) > end or end in before:
            raise InteropError(
                f"text_cfg.pool_type='argmax': this model pools a text at its largest id, which may be {largest}, and "
                f"the end token of tokenizer.json has the id {end}: set pool_type to 'eos' and eos_id to {end} if that "
                "is where it was trained to pool"
            )


def write_texts(text: TowerSpec, tokenizer: Tokenizer, preparation: Preparation, length: int) -> tuple[dict, list[str]]:
    """Returns the settings of a `text_cfg` that say what becomes of texts, and notes on what they cannot say.

    Args:
      text: the text tower.
      tokenizer: as the model was trained with.
      preparation: of its texts.
      length: tokens of a text.

    Raises:
      InteropError: open_clip would pad texts to another length, where that matters.
    """
    settings = dict(hf_tokenizer_name=".")
    if text.pool == "eos" and tokenizer.eos_id < tokenizer.vocab_size - 1:
        settings |= dict(pool_type="eos", eos_id=tokenizer.eos_id)
    if length != text.embed.length and not text.embed.mask_padding:
        raise InteropError(
            f"data.inputs.text.length={length}: open_clip pads texts to the {text.embed.length} positions of the "
            "tower, which sees its padding: its embeddings would differ"
        )
    clean = preparation.clean if preparation.clean in _CLEAN else "whitespace"
    settings["tokenizer_kwargs"] = dict(clean=clean)
    if clean == preparation.clean:
        return settings, []
    missing = "ftfy.fix_text" + (" and html.unescape" if preparation.clean == "none" else "")
    return settings, [
        f"open_clip cleans every text with {missing}, which this model's training did not (data.inputs.text.clean="
        f"{preparation.clean!r}): texts with entities, curly quotes or full-width letters get other embeddings there"
    ]
