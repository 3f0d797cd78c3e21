"""Names of the arrays in a parameter tree: "image/trunk/layers/0/0/attn/query/kernel"."""

from collections.abc import Callable
from typing import Any

import jax


def path_name(keys: tuple) -> str:
    """Joins the keys that `jax.tree_util` gives a leaf by "/"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def flatten_paths(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} in the order of the tree."""
    return {path_name(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_paths(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns the tree of `function(path, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: function(path_name(keys), leaf), tree)
