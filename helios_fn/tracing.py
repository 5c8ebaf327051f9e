"""Whether the code that is running right now is being transformed or compiled by torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

_top_of_stack = torch._C._functorch.peek_interpreter_stack


def is_traced() -> bool:
    """Whether a ``torch.func`` transform (vmap, grad, jvp, ...) is active or the compiler is tracing.

    Then tensors may be stand-ins without values, in-place writes may leak into the trace, and list
    kernels (``torch._foreach_*``) have no batching rule: take the plain out-of-place route.
    """
    return torch.compiler.is_compiling() or _top_of_stack() is not None


def by_formula(leaves: Iterable[Any]) -> bool:
    """Whether results must come from out-of-place tensor operations: traced, or autograd records one of ``leaves``."""
    if is_traced():
        return True
    return torch.is_grad_enabled() and any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves)


def stored(new: Sequence[Any], old: Sequence[Any], *, donate: bool) -> list[Any]:
    """``new``; in a compiled region with ``donate``, the tensors of ``old`` with ``new`` copied into them.

    The compiler turns these copies into writes in place. Elsewhere there would be nothing to gain.
    """
    if not (donate and torch.compiler.is_compiling()):
        return list(new)
    return [
        kept.copy_(leaf) if isinstance(leaf, torch.Tensor) and leaf is not kept else leaf
        for kept, leaf in zip(old, new, strict=True)
    ]
