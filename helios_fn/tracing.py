"""Whether the code that is running right now is being transformed or compiled by torch."""

from __future__ import annotations

import torch

_top_of_stack = torch._C._functorch.peek_interpreter_stack


def is_traced() -> bool:
    """Whether a ``torch.func`` transform (vmap, grad, jvp, ...) is active or the compiler is tracing.

    Then tensors may be stand-ins without values, in-place writes may leak into the trace, and list
    kernels (``torch._foreach_*``) have no batching rule: take the plain out-of-place route.
    """
    return torch.compiler.is_compiling() or _top_of_stack() is not None
