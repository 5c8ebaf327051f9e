"""Stopping in the debugger where a step reaches its user's own code."""

from __future__ import annotations

import functools
import pdb
from collections.abc import Callable
from typing import Any

LIBRARIES = ("helios_fn.*", "torch.*", "optree.*", "numpy.*", "functools", "contextlib", "importlib.*")
"""Modules whose lines are passed over."""


def under_pdb(step: Callable[..., Any], *, debugger: pdb.Pdb | None = None) -> Callable[..., Any]:
    """``step`` as a function that stops at the first line that belongs neither to helios_fn nor to torch.

    Of a step of `helios_fn.make_step` that is the first line of the ``loss_fn``; of one that is written by hand, its
    own first line. What is compiled is stopped at when it is traced.
    """

    @functools.wraps(step, updated=())
    def stopping(state: Any, batch: Any) -> Any:
        return (debugger or pdb.Pdb(skip=LIBRARIES)).runcall(step, state, batch)

    return stopping
