"""Lists of tensors: private copies, and checks that they fit the parameters exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch

from .. import dtensors as shards
from .. import tree
from ..dtensors import is_sharded
from ..types import Tree

_foreach_clone = getattr(torch, "_foreach_clone", None)


def clone(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Private copies of the tensors."""
    if _foreach_clone is not None and tensors:
        return list(_foreach_clone(list(tensors)))
    return [tensor.clone() for tensor in tensors]


def updatable_leaves(params: Tree, *, sharded: bool = False) -> tuple[list[torch.Tensor], optree.PyTreeSpec]:
    """The leaves of ``params`` and its structure; whoever asks says whether they may be ``sharded``.

    Raises:
        TypeError: a leaf is not a dense floating or complex tensor, or is sharded and may not be.
    """
    for path, leaf in tree.items(params):
        if not isinstance(leaf, torch.Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(
                f"{at('params', path)} is {tree.describe(leaf)}: only floating tensors can be optimised; "
                "keep others in buffers or state.extra"
            )
        if leaf.layout is not torch.strided:
            raise TypeError(f"{at('params', path)} is sparse ({leaf.layout}): optimisers need dense tensors")
        if not sharded:
            check_unsharded(path, leaf)
    return tree.flatten(params)


def check_unsharded(path: str, leaf: Any) -> None:
    """Refuse a sharded parameter.

    Raises:
        TypeError: it is one.
    """
    if is_sharded(leaf):
        raise TypeError(
            f"{at('params', path)} is sharded (a DTensor), and this needs whole tensors. For sharded params there are "
            "adamw, adam, sgd, rmsprop and lion, groups, every, tunable and skip_non_finite of them, and before them "
            "clip_by_global_norm, clip_by_value and add_decayed_weights"
        )


def leaves_like(grads: Tree, params: Tree, treespec: optree.PyTreeSpec) -> list[Any]:
    """The leaves of ``grads``, whatever they are, at the places of ``params``, whose structure is ``treespec``.

    Raises:
        ValueError: ``grads`` differs from ``params`` in structure.
    """
    try:
        found: list[Any] = treespec.flatten_up_to(grads)
    except ValueError:
        raise ValueError(f"grads is not a tree like params: {_first_difference(grads, params)}") from None
    return found


def check_like(
    what: str, found: Sequence[Any], wanted: Sequence[torch.Tensor], paths: Callable[[], Sequence[str]]
) -> None:
    """Check that tensors have the shapes, dtypes and devices of those ``wanted``, whose ``paths`` an error names.

    Raises:
        ValueError: one has not.
    """
    for i, (leaf, like) in enumerate(zip(found, wanted, strict=True)):
        dense = isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided
        if not dense or (leaf.shape, leaf.dtype, leaf.device) != (like.shape, like.dtype, like.device):
            raise ValueError(f"{at(what, paths()[i])} is {placed(leaf)} but its parameter is {placed(like)}")


def check_shards(grads: Tree, params: Tree) -> None:
    """Check that gradients are cut into the same pieces as their parameters.

    Raises:
        ValueError: one is not, or is no tree like the params.
    """
    leaves, treespec = tree.flatten(params)
    rows = zip(tree.paths(params), leaves_like(grads, params, treespec), leaves, strict=True)
    for path, grad, leaf in rows:
        pieces = [shards.placed(each)[:2] if is_sharded(each) else None for each in (grad, leaf)]
        if pieces[0] != pieces[1]:
            raise ValueError(
                f"{at('grads', path)} is cut into other pieces than its parameter: {pieces[0]} instead of {pieces[1]}"
            )


def placed(leaf: Any) -> str:
    """A leaf in the words of an error, with its device."""
    if leaf is None:
        return "None (a parameter without a gradient needs zeros)"
    if not isinstance(leaf, torch.Tensor):
        return tree.describe(leaf)
    sparse = "" if leaf.layout is torch.strided else "sparse "
    return f"{sparse}{tree.describe(leaf)} on {leaf.device}"


def at(what: str, path: str) -> str:
    """A path below a name: ``params['a']``, ``params.a``, ``params``."""
    return what + (path if path.startswith("[") or not path else f".{path}")


def _first_difference(grads: Tree, params: Tree) -> str:
    here, there = tree.paths(grads), tree.paths(params)
    missing = [path for path in there if path not in set(here)]
    unknown = [path for path in here if path not in set(there)]
    if missing:
        return f"it has no leaf {missing[0]!r} (a parameter without a gradient needs zeros)"
    return f"it has a leaf {unknown[0]!r} more" if unknown else "the containers differ"
