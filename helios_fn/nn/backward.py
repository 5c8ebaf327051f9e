"""The derivatives of a recorded loss, by the call that ``torch.autograd.grad`` itself ends in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.graph

# Not a public name. On the way there the public function asks each tensor several times whether it is something
# special, which takes as long as the backward pass of two small layers; where torch lacks the name, it is called.
_run: Any = getattr(torch.autograd.graph, "_engine_run_backward", None)


def derivatives(loss: torch.Tensor, leaves: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """The gradient of a 0-d ``loss`` by each of ``leaves``, ``None`` where it does not depend on it."""
    if _run is None or type(loss) is not torch.Tensor or torch.overrides.has_torch_function(leaves):
        return list(torch.autograd.grad(loss, leaves, allow_unused=True))
    keep_graph, create_graph, allow_unused = False, False, True
    start = (torch.ones_like(loss),)
    return list(_run((loss,), start, keep_graph, create_graph, tuple(leaves), allow_unused, accumulate_grad=False))
