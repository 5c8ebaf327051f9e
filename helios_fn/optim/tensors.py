"""Lists of tensors: private copies, and gradients that fit the parameters exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree
import torch

from .. import tree
from ..types import Tree

_foreach_clone = getattr(torch, "_foreach_clone", None)


def clone(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Private copies of the tensors."""
    if _foreach_clone is not None and tensors:
        return list(_foreach_clone(list(tensors)))
    return [tensor.clone() for tensor in tensors]


def updatable_leaves(params: Tree) -> tuple[list[torch.Tensor], optree.PyTreeSpec]:
    """The leaves of ``params`` and its structure.

    Raises:
        TypeError: a leaf is not a dense floating or complex tensor.
    """
    for path, leaf in tree.items(params):
        if not isinstance(leaf, torch.Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(
                f"{at('params', path)} is {tree.describe(leaf)}: only floating tensors can be optimised; "
                "keep others in buffers or state.extra"
            )
        if leaf.layout is not torch.strided:
            raise TypeError(f"{at('params', path)} is sparse ({leaf.layout}): optimisers need dense tensors")
    return tree.flatten(params)


class Template:
    """Tensors whose places in memory others are to match before a kernel sees them side by side.

    Not a nicety: torch's fused CPU kernels walk raw memory. Where strides differ they pair the wrong
    elements without an error (gradients often are transposed views), and where shapes or devices differ
    they touch foreign memory.
    """

    __slots__ = ("_kinds", "_leaves", "_plain")

    def __init__(self, leaves: Sequence[torch.Tensor]) -> None:
        self._leaves = leaves
        self._kinds = _kinds(leaves)
        # Then equal shapes mean equal strides, and none need be fetched.
        self._plain = all(kind[-1] for kind in self._kinds)

    def fit(self, tensors: Sequence[Any], what: str, params: Tree = None) -> list[torch.Tensor]:
        """``tensors``, those among them copied that are not laid out in memory like their counterparts.

        Raises:
            ValueError: a tensor differs from its counterpart in shape, dtype or device.
        """
        if self._plain and self._kinds == _kinds(tensors):
            return list(tensors)
        found = []
        for i, (tensor, leaf) in enumerate(zip(tensors, self._leaves, strict=True)):
            if _kind(tensor)[:-1] != _kind(leaf)[:-1]:
                where = f"{what} of parameter {i}" if params is None else at(what, tree.paths(params)[i])
                raise ValueError(f"{where} is {_placed(tensor)} but its parameter is {_placed(leaf)}")
            fits = tensor.stride() == leaf.stride()
            found.append(tensor if fits else torch.empty_like(leaf).copy_(tensor))
        return found

    def groups(self) -> list[Sequence[int]]:
        """The indices of the tensors, one list per dtype and device: a kernel takes tensors of one kind."""
        kinds = [kind[1:3] for kind in self._kinds]
        if len(set(kinds)) == 1:
            return [range(len(kinds))]
        return [[i for i, kind in enumerate(kinds) if kind == wanted] for wanted in dict.fromkeys(kinds)]


def leaves_like(grads: Tree, params: Tree, treespec: optree.PyTreeSpec, template: Template) -> list[torch.Tensor]:
    """The leaves of ``grads``, laid out in memory like ``template``, which stands for the leaves of ``params``.

    Raises:
        ValueError: ``grads`` differs from ``params`` in structure, or a leaf in shape, dtype or device.
    """
    try:
        found = treespec.flatten_up_to(grads)
    except ValueError:
        raise ValueError(f"grads is not a tree like params: {_first_difference(grads, params)}") from None
    return template.fit(found, "grads", params)


def _kinds(tensors: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [_kind(tensor) for tensor in tensors]


def _kind(tensor: Any) -> tuple[Any, ...]:
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
        return (type(tensor), False)
    return (tensor.shape, tensor.dtype, tensor.device, tensor.is_contiguous())


def _placed(leaf: Any) -> str:
    if leaf is None:
        return "None (a parameter without a gradient needs zeros)"
    if not isinstance(leaf, torch.Tensor):
        return tree.describe(leaf)
    sparse = "" if leaf.layout is torch.strided else "sparse "
    return f"{sparse}{tree.describe(leaf)} on {leaf.device}"


def _first_difference(grads: Tree, params: Tree) -> str:
    here, there = tree.paths(grads), tree.paths(params)
    missing = [path for path in there if path not in set(here)]
    unknown = [path for path in here if path not in set(there)]
    if missing:
        return f"it has no leaf {missing[0]!r} (a parameter without a gradient needs zeros)"
    return f"it has a leaf {unknown[0]!r} more" if unknown else "the containers differ"


def at(what: str, path: str) -> str:
    """A path below a name: ``params['a']``, ``params.a``, ``params``."""
    return what + (path if path.startswith("[") or not path else f".{path}")
