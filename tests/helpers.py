"""Tiny models, batches and meshes that the tests of several rooms share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xmodal.config import make_spec
from xmodal.models import presets
from xmodal.models.init import Draws
from xmodal.models.model import Functional, ModelSpec
from xmodal.paths import flatten_paths, map_paths
from xmodal.training.losses import Losses

VOCAB, LENGTH, PIXELS, PATCH, WIDTH = 32, 8, 16, 8, 16
PATCHES = (PIXELS // PATCH) ** 2
BOS, EOS, PAD = 1, 2, 0
SIZE = dict(width=WIDTH, depth=2, heads=2)


def mesh(data=1, fsdp=1, tensor=1):
    """A mesh over the first devices; enter it with `jax.set_mesh`."""
    shape = (data, fsdp, tensor)
    return jax.make_mesh(
        shape, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3,
        devices=jax.devices()[: data * fsdp * tensor],
    )  # fmt: skip


def image(style="clip", *, embed=None, **changes):
    """A tiny image tower of either style."""
    embed = dict(image_size=PIXELS) | (embed or {})
    shared = dict(embed_dim=WIDTH if style == "clip" else 0)
    return presets.image_tower(**SIZE, patch_size=PATCH, style=style, embed=embed, **(shared | changes))


def resnet(*, pool="mean", **changes):
    """A tiny ResNet as an image tower: two stages, of which the second has two blocks."""
    embed = dict(image_size=PIXELS, block="basic", depths=(1, 2), widths=(8, WIDTH), stem_width=4) | changes
    return presets.resnet_tower(embed, init="resnet", pool=pool, pool_heads=2, embed_dim=WIDTH)


def text(style="clip", *, embed=None, **changes):
    """A tiny text tower of either style."""
    embed = dict(vocab_size=VOCAB, length=LENGTH) | (embed or {})
    return _vocabulary(presets.text_tower(**SIZE, style=style, embed=embed, **(dict(embed_dim=WIDTH) | changes)))


def _vocabulary(tower):
    """What a run takes from the tokenizer."""
    return presets.with_head(tower, "logits", vocab_size=VOCAB) if "logits" in tower["heads"] else tower


def bert(*, embed=None, **changes):
    """A tiny BERT."""
    embed = dict(vocab_size=VOCAB, length=LENGTH) | (embed or {})
    return presets.bert_tower(**SIZE, embed=embed, **changes)


def clip(image_changes=None, text_changes=None, **both):
    """Two towers without wiring, in CLIP's style or (`style="siglip"`) in SigLIP's."""
    return dict(image=image(**both, **(image_changes or {})), text=text(**both, **(text_changes or {})))


def coca(image_changes=None, text_changes=None, **both):
    """CLIP and a decoder that reads its text tower and attends to its image tower."""
    caption = _vocabulary(presets.decoder(**SIZE, **both))
    return clip(image_changes, text_changes, **both) | dict(caption=caption)


def git(image_changes=None, text_changes=None, **both):
    """One text tower that reads the image tokens as a prefix and predicts text."""
    prefix = dict(embed_dim=0, pool="none") | (image_changes or {})
    prefix["embed"] = dict(class_token=True) | prefix.get("embed", {})
    caption = text(**(dict(embed_dim=0, pool="none", head="tied") | (text_changes or {})), **both)
    return dict(image=image(**prefix, **both), caption=caption | dict(reads=dict(image=dict(type="linear_norm"))))


def build(towers, dtype="float32"):
    """A model of presets (`dict(image=..., text=...)`)."""
    return Functional.build(make_spec(ModelSpec, presets.fusion(dtype=dtype, **towers), where="model"))


def random_params(model, seed=0):
    """Parameters for a `Functional` or a tree of shapes, drawn with NumPy (nothing to compile).

    Nothing is zero or one as a real initialisation would have it, so that no part of a model is silent.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0)) if isinstance(model, Functional) else model
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        values = rng.standard_normal(shape.shape)
        if path.endswith("kernel"):
            values = values / np.sqrt(np.prod(shape.shape[-2:-1]))
        elif path.endswith("scale"):
            values = 1.0 + 0.2 * values
        elif path.endswith("var"):
            values = 0.5 + np.abs(values)
        else:
            values = 0.3 * values
        return values.astype(np.float32)

    return map_paths(draw, shapes)


def split(make):
    """Returns (bind, parameter shapes) of what `make(draw)` builds; `bind(params)` is the module."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(Draws(jax.random.key(0)))))
    return lambda params: nnx.merge(graphdef, params), nnx.to_pure_dict(state)


def batch(size=8, seed=0, length=LENGTH):
    """Images in about [-1, 1] and captions of different lengths, all rows distinct."""
    rng = np.random.default_rng(seed)
    ends = 2 + np.arange(size) % (length - 2)  # index of the end mark; never two rows of the same key
    ids = rng.integers(3, VOCAB, (size, length)).astype(np.int32)
    place = np.arange(length)
    ids = np.where(place == ends[:, None], EOS, np.where(place > ends[:, None], PAD, ids)).astype(np.int32)
    ids[:, 0] = BOS
    number = np.stack([np.arange(size), np.full(size, 7)], axis=1).astype(np.uint32)
    return dict(
        image=rng.normal(size=(size, PIXELS, PIXELS, 3)).astype(np.float32), text=ids,
        text_valid=place <= ends[:, None], key_id=number, caption_id=number + np.uint32(1000),
    )  # fmt: skip


def losses(towers, objectives, mesh, dtype="float32"):
    """Losses of a tiny model whose images need no preprocessing."""
    return Losses(build(towers, dtype), objectives, lambda batch, keys: dict(batch), mesh)


def assert_trees_close(got, want, tolerance=2e-5):
    """Compares trees leaf by leaf, on the scale of each leaf's largest value.

    That scale is at least a hundredth of the whole tree's: gradients that are zero by mathematics (biases of keys)
    are rounding noise in floating point.
    """
    got, want = flatten_paths(got), flatten_paths(want)
    assert got.keys() == want.keys()
    largest = lambda a: np.max(np.abs(np.asarray(a, np.float64)), initial=0.0)
    floor = 0.01 * max(map(largest, want.values()))
    for path, expected in want.items():
        assert got[path].shape == expected.shape, path
        error = largest(np.asarray(got[path], np.float64) - expected)
        limit = tolerance * max(largest(expected), floor)
        assert error <= limit, f"{path}: differs by {error:.2e}, allowed {limit:.2e}"


def forward(model, *want):
    """Jitted f(params, batch, keys=None) -> the wanted outputs, on one device."""
    compiled = jax.jit(lambda params, batch, keys: model(params, batch, frozenset(want), keys))

    def call(params, batch, keys=None):
        with jax.set_mesh(mesh()):
            return compiled(params, batch, keys)

    return call


def sample_keys(size=8, seed=0):
    """Per-sample random keys."""
    return jax.random.split(jax.random.key(seed), size)


def rows(tree, index):
    """The chosen rows of every array."""
    return jax.tree.map(lambda a: a[jnp.asarray(index)], tree)
