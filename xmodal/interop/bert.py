"""BERT: Hugging Face's `BertModel`, with or without pooler, and `BertForMaskedLM`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from xmodal.interop.encoders import FREE_TRUNK, TEXT, encoder_config, fixed_heads, hidden, layer_settings, sizes
from xmodal.interop.settings import Settings, architecture, section
from xmodal.interop.tables import Entry, Family, InteropError, differences, fail, linear, norm
from xmodal.models import presets
from xmodal.models.embed import TokenSpec
from xmodal.models.heads import LogitsSpec
from xmodal.models.model import ModelSpec
from xmodal.models.options import training
from xmodal.models.spec import Sublayer
from xmodal.models.tower import TowerSpec
from xmodal.models.trunk import TrunkSpec

# With the defaults of the reference's configuration class.
_READ = dict(vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
                hidden_act="gelu", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
                max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12)  # fmt: skip
_BARE, _MASKED, _PRETRAINING = "BertModel", "BertForMaskedLM", "BertForPreTraining"
_FIXED = dict(is_decoder=False, add_cross_attention=False, position_embedding_type="absolute", tie_word_embeddings=True)
# Of heads that are not converted, and of the first published files, which nothing reads; whether there is a pooler is
# told by the weights.
_IDLE = ("add_pooling_layer", "classifier_dropout", "directionality", "pooler_fc_size", "pooler_num_attention_heads",
         "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type")  # fmt: skip
SETTINGS = Settings(read=_READ, fixed=_FIXED, idle=_IDLE)
TEXT_PART = Settings(read=_READ, fixed=dict(position_embedding_type="absolute"), idle=(*_IDLE, "projection_dim"))
_MAPS = (("attention.self.query", "query"), ("attention.self.key", "key"), ("attention.self.value", "value"),
         ("attention.output.dense", "out"))  # fmt: skip
# What files carry beside the model: an index table, the head that tells whether one sentence follows another (no
# objective here trains it), and copies of the token table and the head's bias.
_IGNORED = ("embeddings.position_ids", "bert.embeddings.position_ids", "cls.seq_relationship.weight",
            "cls.seq_relationship.bias", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias")  # fmt: skip


# ---------------------------------------------------------------------------------------------- settings


def with_names(config: Mapping[str, Any], names: Iterable[str]) -> dict:
    """Completes a config.json by what only the weights tell: whether there is a pooler.

    The published files call themselves `BertForMaskedLM` and hold all of `BertForPreTraining`.
    """
    pooler = any(name.endswith("pooler.dense.weight") for name in names)
    return {**config, "add_pooling_layer": pooler}


def model_config(config: Mapping[str, Any]) -> ConfigDict:
    """Returns the `model` section of a `BertConfig`."""
    hint = (f". The model itself can be converted, `{_BARE}.from_pretrained(...).save_pretrained(DIR)`; its head "
            "belongs to one data set")  # fmt: skip
    kind = architecture(config, _BARE, _MASKED, _PRETRAINING, hint=hint)
    pooler = bool(config.get("add_pooling_layer", kind != _MASKED))
    tower = text_tower(section(config, "", SETTINGS), pooler=pooler, head="none" if kind == _BARE else "masked")
    return presets.dual_tower(**{TEXT: tower})


def text_tower(config: Mapping[str, Any], **changes) -> dict:
    """Returns the tower of a complete `BertConfig`; `changes` as for `presets.bert_tower`."""
    tokens = dict(vocab_size=config["vocab_size"], length=config["max_position_embeddings"],
                  types=config["type_vocab_size"])  # fmt: skip
    return presets.bert_tower(
        *sizes(config), dropout=config["hidden_dropout_prob"],
        embed=tokens, **dict(attn_dropout=0.0) | layer_settings(config, "attention_probs_dropout_prob"), **changes,
    )  # fmt: skip


def to_config(spec: ModelSpec) -> dict:
    """Returns the config.json of a model that `table` accepts."""
    tower = _tower(spec)
    return dict(architectures=[_MASKED if tower.head == "masked" else _BARE], **text_config(tower))


def text_config(tower: TowerSpec, where: str = TEXT) -> dict:
    """The `BertConfig` of a tower: the way back of `text_tower`."""
    own = encoder_config(tower.trunk, where)
    del own["attention_dropout"]
    attention, embed = tower.trunk.pattern[0][0], tower.embed
    return dict(
        model_type="bert", **own, vocab_size=embed.vocab_size, max_position_embeddings=embed.length,
        type_vocab_size=embed.types, hidden_dropout_prob=attention.dropout,
        attention_probs_dropout_prob=attention.attn_dropout, **_FIXED,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- names


def table(spec: ModelSpec) -> list[Entry]:
    """Returns every array of the `BertModel` or `BertForMaskedLM` that `spec` describes."""
    tower = _tower(spec)
    masked = tower.head == "masked"
    prefix = "bert." if masked else ""
    rows = [*tower_entries(prefix, tower)]
    return [*rows, *_head(tower)] if masked else rows


def tower_entries(prefix: str, tower: TowerSpec, path: str = TEXT) -> Iterator[Entry]:
    """Embeddings, layers and pooler of a BERT whose names begin with `prefix`."""
    width, embed, name, own = tower.width, tower.embed, f"{prefix}embeddings", f"{path}/embed"
    for theirs, ours, rows in (("word", "embedding", embed.vocab_size), ("position", "position", embed.length),
                               ("token_type", "types", embed.types)):  # fmt: skip
        yield Entry(f"{name}.{theirs}_embeddings.weight", f"{own}/{ours}", (rows, width))
    yield from norm(f"{name}.LayerNorm", f"{own}/norm", width)
    attention, mlp = f"{path}/trunk/layers/0/0", f"{path}/trunk/layers/0/1"
    inner = hidden(tower.trunk)
    for i in range(tower.trunk.depth):
        layer = f"{prefix}encoder.layer.{i}"
        for theirs, ours in _MAPS:
            yield from linear(f"{layer}.{theirs}", f"{attention}/attn/{ours}", width, width, layer=i)
        yield from norm(f"{layer}.attention.output.LayerNorm", f"{attention}/norm", width, i)
        yield from linear(f"{layer}.intermediate.dense", f"{mlp}/mlp/fc1", width, inner, layer=i)
        yield from linear(f"{layer}.output.dense", f"{mlp}/mlp/fc2", inner, width, layer=i)
        yield from norm(f"{layer}.output.LayerNorm", f"{mlp}/norm", width, i)
    if tower.pooled.pooler:
        yield from linear(f"{prefix}pooler.dense", f"{path}/pooler", width, width)


def _head(tower: TowerSpec) -> Iterator[Entry]:
    name, path, width = "cls.predictions", f"{TEXT}/head", tower.width
    yield Entry(f"{name}.bias", f"{path}/bias", (tower.outputs["logits"],))
    yield from linear(f"{name}.transform.dense", f"{path}/dense", width, width)
    yield from norm(f"{name}.transform.LayerNorm", f"{path}/norm", width)


def _alias(name: str) -> str:
    """Name of an array of the first published files, in which norms are called otherwise."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


# ---------------------------------------------------------------------------------------------- what is possible


def _tower(spec: ModelSpec) -> TowerSpec:
    if list(spec.towers) != [TEXT]:
        raise InteropError(f"{_BARE} has one tower, {TEXT!r}; the model has {', '.join(spec.towers)}")
    tower = spec.towers[TEXT]
    if not isinstance(tower.embed, TokenSpec):
        raise InteropError(f"{TEXT}/embed: needs a TokenSpec, is {type(tower.embed).__name__}")
    fixed = fixed_tower(tower, pool="cls", pooler=bool(tower.pooled and tower.pooled.pooler))
    if tower.head == "masked":
        fixed.heads["logits"] = LogitsSpec(map="masked", vocab_size=tower.heads["logits"].vocab_size)
    fail(f"{_MASKED if tower.head == 'masked' else _BARE} has no such model", differences(tower, fixed, TEXT))
    return tower


def fixed_tower(tower: TowerSpec, **fixed) -> TowerSpec:
    """The tower with everything at its default or as a BERT has it, but its sizes; `fixed`: of the head `pooled`."""
    trunk = tower.trunk
    # Built from the classes' defaults, so that an option that is added later is refused until a table knows it.
    free = {name: getattr(tower.embed, name) for name in ("vocab_size", "length", "input", *training(TokenSpec))}
    embed = TokenSpec(**free, types=tower.embed.types or 2, causal=False, norm=True, norm_eps=trunk.norm_eps)
    first = {s.kind: s for s in trunk.pattern[0]}

    def keep(kind: str, *names: str) -> Sublayer:
        have = first.get(kind, Sublayer(kind))
        kept = {name: getattr(have, name) for name in ("dropout", *names)}
        return Sublayer(kind, place="post", norm_eps=trunk.norm_eps, **kept)

    own = {name: getattr(trunk, name) for name in FREE_TRUNK}
    pattern = ((keep("self", "heads", "attn_dropout"), keep("mlp", "hidden", "act")),)
    heads = fixed_heads(tower, ("projection_bias", "pool_heads"), **fixed)
    return TowerSpec(trunk=TrunkSpec(pattern=pattern, final_norm=False, **own), embed=embed, heads=heads)


def projected_differences(tower: TowerSpec, dim: int, *, bias: bool) -> list[str]:
    """Says in what a tower is not a BERT read at its first token and projected to a shared space `dim` wide."""
    if not isinstance(tower.embed, TokenSpec) or not tower.trunk.pattern:
        return [f"{TEXT}: needs a TokenSpec and layers"]
    return differences(tower, fixed_tower(tower, pool="cls", pooler=False, embed_dim=dim, projection_bias=bias), TEXT)


def is_post_norm(tower: TowerSpec) -> bool:
    """Whether the layers of a tower are BERT's: normalised after their sum."""
    return bool(tower.trunk.pattern) and tower.trunk.pattern[0][0].place == "post"


BERT = Family(
    model_type="bert", architecture=_BARE, model_config=model_config, table=table, to_config=to_config,
    fits=lambda spec: list(spec.towers) == [TEXT] and is_post_norm(spec.towers[TEXT]),
    with_names=with_names, alias=_alias, ignored=frozenset(_IGNORED),
)  # fmt: skip
