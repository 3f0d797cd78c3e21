"""What an option of a spec changes is said on its field, and nowhere else."""

import dataclasses

import pytest

from xmodal.models.connectors import CONNECTORS
from xmodal.models.embed import EMBEDDERS
from xmodal.models.heads import HEADS, LocalSpec, LogitsSpec, PooledSpec
from xmodal.models.options import SHAPES, TRAINING, free_paths, training
from xmodal.models.presets.base import ATTENTION_FIELDS, TRUNK_FIELDS
from xmodal.models.resnet import ResNetSpec
from xmodal.models.spec import Lora, Sublayer
from xmodal.models.tower import TowerSpec
from xmodal.models.trunk import TRUNKS, TrunkSpec

SPECS = (Sublayer, TowerSpec, *TRUNKS.values(), *EMBEDDERS.values(), *CONNECTORS.values(), *HEADS.values())
# Options that matter in training alone wherever they stand; a spec that has one and does not say so is a fault.
NAMES = {"dropout", "attn_dropout", "drop_path", "drop_connect", "patch_dropout", "momentum", "norm_momentum", "scan",
         "remat", "init", "gate_init", "mask_bands", "mask_frames"}  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_each_spec_says_so_on_its_fields(spec):
    fields = {f.name: f.metadata for f in dataclasses.fields(spec)}
    assert all(metadata in ({}, TRAINING, SHAPES) for metadata in fields.values())
    assert set(training(spec)) == {name for name in fields if name in NAMES}
    assert fields.get("image_size", SHAPES) == SHAPES == fields.get("length", SHAPES)


def test_presets_know_the_fields_of_a_trunk():
    names = lambda spec: {f.name for f in dataclasses.fields(spec)}
    assert set(TRUNK_FIELDS) == names(TrunkSpec) - {"type", "width", "depth", "pattern"}
    assert set(ATTENTION_FIELDS) < names(Sublayer)


def test_the_paths_of_what_need_not_agree():
    trunk = TrunkSpec(8, 1, ((Sublayer("self", heads=2, lora=Lora(4, targets=("query",))),),))
    assert set(free_paths(trunk, "a/trunk")) == {
        "a/trunk/depth", "a/trunk/drop_path", "a/trunk/init", "a/trunk/scan", "a/trunk/remat",
        *(f"a/trunk/pattern/0/0/{name}" for name in ("gate_init", "dropout", "attn_dropout")),
        *(f"a/trunk/pattern/0/0/lora/{name}" for name in ("rank", "alpha", "targets/0")),
    }  # fmt: skip
    assert {"x/remat/0", "x/remat/1", "x/momentum"} <= set(
        free_paths(ResNetSpec(remat=("none", "full", "full", "none")), "x")
    )


def test_of_the_heads_the_embedding_alone_must_agree():
    heads = dict(pooled=PooledSpec(embed_dim=4), logits=LogitsSpec(vocab_size=9), local=LocalSpec())
    found = set(free_paths(TowerSpec(TrunkSpec(8, 0, ()), heads=heads), "a"))
    assert {f"a/heads/logits/{name}" for name in ("type", "map", "vocab_size", "segment")} <= found
    assert {"a/heads/local/type", "a/heads/local/of"} <= found
    assert not any(path.startswith("a/heads/pooled/") for path in found)
