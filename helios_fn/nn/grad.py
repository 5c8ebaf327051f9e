"""Values and gradients of functions of trees."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import optree
import torch

from .. import tree
from ..distributed.gradients import Derivation
from ..dtensors import any_sharded
from ..errors import StateDonated
from ..tracing import is_traced
from ..types import Tree
from .backward import derivatives
from .session import Session
from .shards import check_unsharded, sharded_derivatives

OpenCall: TypeAlias = Callable[[Tree], tuple[torch.Tensor, Any]]
"""A call of the user's function in which one argument is left open; returns loss and aux."""

_REQUIRES_GRAD = operator.attrgetter("requires_grad")
_AS_IT_IS = contextlib.nullcontext()


def value_and_grad(
    fn: Callable[..., Any],
    /,
    *,
    argnum: int = 0,
    has_aux: bool = False,
    higher_order: bool = False,
    on_constant: Callable[[Any], None] | None = None,
) -> Callable[..., tuple[Any, Tree]]:
    """A function that returns ``(value, grads)`` of ``fn``, or ``((value, aux), grads)`` with ``has_aux``.

    ``fn`` returns a 0-d tensor, and with ``has_aux`` a pair of it and any tree. ``grads`` has the
    structure of positional argument ``argnum``, whose leaves are floating point (or complex) tensors;
    parameters that ``fn`` does not use get zeros. Where the value depends on none of them, ``on_constant``
    is called with ``aux`` first, and may raise (not in a compiled region). No input is written, no
    ``.grad`` touched, and what comes back is detached. Gradients may share memory with each other: add to
    them out of place.

    The gradient is taken by ``torch.autograd.grad`` on detached leaves (activation checkpointing and
    old-style autograd functions work), or by ``torch.func`` where that would lose a derivative: inside
    a ``torch.func`` transform, in a compiled region, in inference mode, where an argument is part of an
    outer graph, or with ``higher_order``. Then the outputs stay differentiable by the outer level. Both
    routes give the same bits. Tensors that ``fn`` closes over are constants, unless ``higher_order``.

    Sharded leaves (DTensors) take the first route only, and ``fn`` uses them through
    `helios_fn.distributed.gathered`. Their gradients are sharded as they are, and are sums over the processes: inside
    of `microsteps` of each process's gradient times its weight, elsewhere of the gradients as they are.

    Raises:
        TypeError: the value is not a real tensor, ``fn`` does not return a pair with ``has_aux``, a leaf
            has no gradient (integers, Python scalars: they belong into the buffers), or a sharded one was not gathered.
        ValueError: the value is not 0-d.

    Example:
        >>> hf.value_and_grad(lambda params: (params["w"] ** 2).sum())({"w": torch.tensor([1.0, 2.0])})
        (tensor(5.), {'w': tensor([2., 4.])})
    """
    flatten_params, flatten_rest, flatten_aux = tree.Flattener(), tree.Flattener(), tree.Flattener()

    def split(result: Any) -> tuple[torch.Tensor, Any]:
        if not has_aux:
            return _check_loss(result), None
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"with has_aux=True the function must return (loss, aux), got {tree.describe(result)}")
        loss, aux = result
        usual = type(loss) is torch.Tensor and loss.ndim == 0 and loss.is_floating_point()
        return (loss if usual else _check_loss(loss)), aux

    def wrapped(*args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        if not 0 <= argnum < len(args):
            raise TypeError(f"argnum={argnum}, but the function was called with {len(args)} positional arguments")

        def call(params: Tree) -> tuple[torch.Tensor, Any]:
            return split(fn(*args[:argnum], params, *args[argnum + 1 :], **kwargs))

        if higher_order or is_traced() or torch.is_inference_mode_enabled():
            loss, aux, grads, constant = _by_transform(call, args[argnum], argnum)
        else:
            leaves, treespec = flatten_params.outside(args[argnum])
            rest, _ = flatten_rest.outside((args[:argnum], args[argnum + 1 :], kwargs))
            if torch.is_grad_enabled() and (_any_in_graph(leaves) or _any_in_graph(rest)):
                loss, aux, grads, constant = _by_transform(call, args[argnum], argnum)
            else:
                loss, aux, found, constant = _by_autograd(call, leaves, treespec, argnum)
                aux, grads = _detached(aux, flatten_aux), treespec.unflatten(found)
        if constant and on_constant is not None:
            on_constant(aux)
        return ((loss, aux) if has_aux else loss), grads

    return wrapped


def grad(
    fn: Callable[..., Any],
    /,
    *,
    argnum: int = 0,
    has_aux: bool = False,
    higher_order: bool = False,
) -> Callable[..., Any]:
    """Like `value_and_grad`, but returns ``grads``, or ``(grads, aux)`` with ``has_aux``.

    Example:
        >>> gradient = hf.grad(lambda params, x: (params["w"] * x).sum())
        >>> gradient({"w": torch.tensor([1.0, 2.0])}, torch.tensor([3.0, 4.0]))
        {'w': tensor([3., 4.])}
    """
    both = value_and_grad(fn, argnum=argnum, has_aux=has_aux, higher_order=higher_order)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return wrapped


def _by_autograd(
    call: OpenCall, leaves: list[torch.Tensor], treespec: optree.PyTreeSpec, argnum: int
) -> tuple[torch.Tensor, Any, list[Any], bool]:
    recording = torch.is_grad_enabled()
    around = Derivation() if any_sharded(leaves) else _AS_IT_IS
    with _AS_IT_IS if recording else torch.enable_grad(), Session(), around as derivation:
        try:
            primals = [leaf.detach().requires_grad_() for leaf in leaves]
        except StateDonated:
            raise
        except (AttributeError, RuntimeError):
            _check_leaves(tree.unflatten(treespec, leaves), argnum)
            raise
        loss, aux = call(treespec.unflatten(primals))
        found: list[torch.Tensor | None] = [None] * len(leaves)
        if derivation is not None:
            found = sharded_derivatives(derivation, loss, aux, primals)
        elif primals and loss.requires_grad:
            found = derivatives(loss, primals)
    unused = [at for at, gradient in enumerate(found) if gradient is None]
    for at in unused:
        found[at] = torch.zeros_like(leaves[at])
    constant = len(unused) == len(leaves) if derivation is None else not loss.requires_grad
    return loss.detach(), aux, found, bool(leaves) and constant


def _by_transform(call: OpenCall, params: Tree, argnum: int) -> tuple[torch.Tensor, Any, Tree, bool]:
    _check_leaves(params, argnum)
    leaves, treespec = tree.flatten(params)
    check_unsharded(leaves, argnum)
    if not leaves:
        loss, aux = call(params)
        return loss, aux, params, False
    returned: list[Any] = []

    def of_leaves(leaves: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        loss, aux = call(tree.unflatten(treespec, leaves))
        # At this level a loss that only outer levels can differentiate requires no gradient.
        returned.extend((aux, not torch.compiler.is_compiling() and not loss.requires_grad))
        # torch.func knows neither our nodes nor leaves other than tensors.
        return loss, tree.tensors(aux)

    grads, (loss, tensors) = torch.func.grad_and_value(of_leaves, has_aux=True)(leaves)
    aux, constant = returned
    return loss, tree.with_tensors(aux, tensors), tree.unflatten(treespec, grads), constant


def _check_loss(loss: Any) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"the loss must be a 0-d tensor, got {tree.describe(loss)}")
    if loss.dim() != 0:
        raise ValueError(f"the loss must be a 0-d tensor, got {tree.describe(loss)}: take its mean or sum")
    if loss.is_complex():
        raise TypeError(f"the loss must be real, got {tree.describe(loss)}: take its real part or absolute value")
    return loss


def _check_leaves(params: Tree, argnum: int) -> None:
    if torch.compiler.is_compiling():
        return
    for path, leaf in tree.items(params):
        if not isinstance(leaf, torch.Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
            raise TypeError(
                f"argument {argnum} of the function holds {tree.describe(leaf)} at {path or 'its root'}: only "
                "floating point and complex tensors have gradients; keep other leaves in the buffers"
            )


def _any_in_graph(leaves: list[Any]) -> bool:
    """Whether a leaf has a derivative that the autograd route would lose (or refuse to take)."""
    try:
        return any(map(_REQUIRES_GRAD, leaves)) or any(map(torch.Tensor.is_inference, leaves))
    except (AttributeError, TypeError):  # not all are tensors
        found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return any(map(_REQUIRES_GRAD, found)) or any(map(torch.Tensor.is_inference, found))


def _detached(aux: Any, flatten: tree.Flattener) -> Any:
    """``aux`` without the graph that its tensors would keep alive."""
    leaves, treespec = flatten.outside(aux)
    recorded = [at for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    for at in recorded:
        leaves[at] = leaves[at].detach()
    return treespec.unflatten(leaves) if recorded else aux
