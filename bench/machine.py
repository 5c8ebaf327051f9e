"""What a figure depends on besides the code: processor, cores, threads, versions. No host names, no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

PEERS = ("numpy", "optree", "lightning", "pytorch-ignite", "accelerate", "helios-ml", "torchdata")


def describe() -> dict[str, str | int]:
    """The machine and the versions, flat and in a fixed order."""
    facts: dict[str, str | int] = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return facts | {name: found for name in PEERS if (found := version(name))}


def cpu_model() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or "unknown processor"


def version(distribution: str) -> str:
    """The installed version, or nothing where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
