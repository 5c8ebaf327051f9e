"""Stopping in the debugger where a step reaches its user's own code."""

from __future__ import annotations

import functools
import pdb
from collections.abc import Callable
from types import FrameType
from typing import Any

from ..frames import whose


class Debugger(pdb.Pdb):
    """Python's debugger, which first stops at a line that is neither helios_fn's nor torch's nor Python's own.

    From there on it is the ordinary one.
    """

    _arrived = False

    def stop_here(self, frame: FrameType) -> bool:
        """Whether to stop in a frame."""
        return (self._arrived or not is_library(frame.f_code.co_filename)) and super().stop_here(frame)

    def user_call(self, frame: FrameType, argument_list: Any) -> None:
        """Entering a function: no place to stop before the first line."""
        if self._arrived:
            super().user_call(frame, argument_list)

    def user_line(self, frame: FrameType) -> None:
        """Stop at a line."""
        self._arrived = True
        super().user_line(frame)


def under_pdb(step: Callable[..., Any], debugger: pdb.Pdb | None = None) -> Callable[..., Any]:
    """``step`` as a function that stops in a debugger, by default at the first line of the user's own code.

    Of a step of `helios_fn.make_step` that is the first line of the ``loss_fn``; of one that is written by hand, its
    own first line. What is compiled cannot be looked into.
    """

    @functools.wraps(step, updated=())
    def stopping(state: Any, batch: Any) -> Any:
        return (debugger or Debugger()).runcall(step, state, batch)

    return stopping


def is_library(file: str) -> bool:
    """Whether a file is of Python, torch, or this package; so is what these have made up as a text."""
    return file == "<string>" or whose(file) != "user"
