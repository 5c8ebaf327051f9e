"""Descriptions that are the same in every process: they go into the manifests of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")


def stable(value: Any) -> str:
    """``repr(value)`` without memory addresses (functions have them)."""
    return _ADDRESS.sub("", repr(value))


def brief(value: Any) -> str:
    """A value within the one line of an error message (torch's optimisers describe themselves in fifteen)."""
    if isinstance(value, torch.optim.Optimizer):
        return f"an instance of {type(value).__name__}"
    text = stable(value)
    return text if len(text) <= 80 and "\n" not in text else f"{text.splitlines()[0][:77]}..."


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as it would be written: ``name(first=1, second=2)``."""
    return f"{name}({', '.join(f'{key}={stable(value)}' for key, value in arguments.items())})"
