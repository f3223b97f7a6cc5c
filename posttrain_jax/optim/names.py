"""Which weights are matrices, told by the names on their paths.

Not by their ranks alone: the weights of all layers and experts are stacked, so a norm's scale has two axes.
"""

from __future__ import annotations

from typing import Any

import jax


def names(path: tuple) -> list[str]:
    """The names along a path of a tree, outermost first."""
    return [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]


def is_matrix(path: tuple, leaf: Any) -> bool:
    """Whether the last two axes are a matrix: no norm, no bias."""
    return leaf.ndim >= 2 and not any("norm" in name or "bias" in name for name in names(path))


def is_hidden_matrix(path: tuple, leaf: Any) -> bool:
    """Whether it is a matrix between hidden states: neither the token embedding nor the language-model head."""
    return is_matrix(path, leaf) and not {"embed", "head"} & set(names(path))


def matrices(tree: Any) -> Any:
    """`is_matrix` of every leaf: what decays."""
    return jax.tree_util.tree_map_with_path(is_matrix, tree)
