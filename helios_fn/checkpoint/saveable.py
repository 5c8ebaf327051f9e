"""Which trees can be saved exactly; the others are refused by path, with what to do about it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from typing import Any

import torch

from .. import tree as trees
from ..dtensors import any_sharded, is_sharded, local
from ..types import Tree
from .leaves import DTYPE_NAMES, MAX_DIMENSIONS, SCALARS, is_text
from .storages import extent_of
from .structure import MAX_DEPTH, expected_leaf, is_key, join, open_node, outline, plain_problem


def check_saveable(tree: Tree, *, free: Collection[str] = (), sharded: bool = False) -> None:
    """Check that each leaf of ``tree`` can be saved and comes back with the same bits.

    ``free`` are paths that will be loaded without a template: they may hold dicts, lists, tuples,
    ``None`` and leaves only. ``sharded`` leaves (DTensors) can be saved by a `ShardedStore` only; one that is placed
    as ``Partial`` by none.

    Raises:
        TypeError: naming every leaf that cannot, and the remedy.
    """
    if sharded and any_sharded(trees.leaves(tree)):
        tree = trees.map(_local, tree)
    if _is_sound(tree, tuple(free)):
        return
    found = list(_problems(tree, "", 0, free))
    if found:
        raise TypeError("these leaves cannot be saved exactly:\n" + "\n".join(f"  {problem}" for problem in found))


def _is_sound(tree: Tree, free: tuple[str, ...]) -> bool:
    """Whether nothing is wrong, at a tenth of the cost of looking for what is.

    A run saves one structure again and again, so that each is looked at once; leaves are looked at each time.
    """
    try:
        leaves, treespec = trees.flatten(tree)
        return _is_sound_structure(treespec, free) and all(_leaf_problem(leaf) is None for leaf in leaves)
    except Exception:  # trees that cannot be taken apart so are found out by the careful way
        return False


@functools.lru_cache(maxsize=64)
def _is_sound_structure(treespec: Any, free: tuple[str, ...]) -> bool:
    return not any(_problems(trees.unflatten(treespec, [0] * treespec.num_leaves), "", 0, free))


def _local(leaf: Any) -> Any:
    """The part of a sharded leaf that this process holds, if it is a part of the elements and not of a sum."""
    is_sum = is_sharded(leaf) and any(placement.is_partial() for placement in leaf.placements)
    return leaf if is_sum else local(leaf)


def tensor_problem(tensor: torch.Tensor) -> str | None:
    """Why a tensor cannot be saved exactly, and the remedy; ``None`` if it can."""
    if type(tensor) is not torch.Tensor:
        if isinstance(tensor, torch.nn.Parameter):
            return "an nn.Parameter; pass its .detach()"
        if is_sharded(tensor):
            return "a sharded tensor (DTensor), of which this process has a part only"
        return f"a tensor subclass, {type(tensor).__qualname__}; convert it to a plain tensor"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "a tensor inside a torch.func transform; save outside of it"
    if tensor.is_nested:
        return "a nested tensor; pad it, or keep its components"
    if tensor.layout != torch.strided:
        return f"a tensor of layout {tensor.layout}; use .to_dense()"
    if tensor.is_quantized:
        return "a quantised tensor; keep .int_repr() and its scale and zero point"
    if tensor.is_meta:
        return "a tensor on the meta device, which holds no values"
    if tensor.requires_grad:
        return "a tensor that requires grad; use .detach()"
    if tensor.is_conj():
        return "a conjugate view; use .resolve_conj()"
    if tensor.is_neg():
        return "a negative view; use .resolve_neg()"
    if tensor.dtype not in DTYPE_NAMES:
        return f"a tensor of dtype {tensor.dtype}; use another dtype"
    if tensor.dim() > MAX_DIMENSIONS:
        return f"a tensor of {tensor.dim()} dimensions; use at most {MAX_DIMENSIONS}"
    return _memory_problem(tensor)


def _memory_problem(tensor: torch.Tensor) -> str | None:
    try:
        available = tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):
        return f"a tensor without accessible memory on {tensor.device}; use .cpu()"
    if tensor.is_contiguous():  # what most are, and quicker to tell
        end = (int(tensor.storage_offset()) + tensor.numel()) * tensor.element_size()
    else:
        end = extent_of(tensor).stop
    if tensor.numel() and (tensor._is_zerotensor() or end > available):
        return "a tensor whose memory was freed or never existed; use .clone() while it exists"
    return None


def _problems(node: Any, path: str, depth: int, free: Collection[str]) -> Iterator[str]:
    if depth > MAX_DEPTH:
        yield f"{path}: nested deeper than {MAX_DEPTH} containers; flatten it"
        return
    opened = open_node(node)
    if opened is None:
        problem = _leaf_problem(node)
        if problem:
            yield f"{path or '(root)'}: {problem}"
        return
    if path in free:
        problem = plain_problem(outline(node, expected_leaf), path)
        if problem:
            yield problem
    for part, child in opened.children.items():
        yield from _problems(child, join(path, part), depth + 1, free)
    for key in opened.keys:
        if not is_key(key):
            yield f"{path or '(root)'}: a dict key of type {type(key).__qualname__}; use text or whole numbers"
    if len(opened.children) < len(opened.keys):
        yield f"{path or '(root)'}: two dict keys that read the same; use text or whole numbers"


def _leaf_problem(leaf: Any) -> str | None:
    if isinstance(leaf, torch.Tensor):
        return tensor_problem(leaf)
    if type(leaf) in SCALARS:
        return None if type(leaf) is not str or is_text(leaf) else "text with unpaired surrogates; decode it properly"
    name = f"{type(leaf).__module__}.{type(leaf).__qualname__}".removeprefix("builtins.")
    if type(leaf).__module__ == "numpy":
        return f"a {name}; use torch.as_tensor(x) for an array, x.item() for a scalar"
    for scalar in SCALARS:
        if isinstance(leaf, scalar):
            return f"a {name}, which is not exactly {scalar.__name__}; use {scalar.__name__}(x)"
    return f"an object of type {name}; keep it outside of the state, or make it a tree with helios_fn.tree.register"
