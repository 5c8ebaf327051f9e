"""The determinism preset: what torch lets one pin so that the same program gives the same bits."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_INDUCTOR = "TORCHINDUCTOR_DETERMINISTIC"
_VARIABLES = {_CUBLAS: ":4096:8", _INDUCTOR: "1"}  # read when what they are for is first used


class Pinned(NamedTuple):
    """The settings of this process that can change bits; printed, they are one line."""

    torch: str
    threads: int
    algorithms: bool
    cudnn_benchmark: bool
    cudnn_deterministic: bool
    tf32: bool
    workspace: str | None
    device: str

    @classmethod
    def now(cls) -> Pinned:
        """As they are."""
        return cls(
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            algorithms=torch.are_deterministic_algorithms_enabled(),
            cudnn_benchmark=torch.backends.cudnn.benchmark,
            cudnn_deterministic=torch.backends.cudnn.deterministic,
            tf32=torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
            workspace=os.environ.get(_CUBLAS),
            device=torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else torch.backends.cpu.get_cpu_capability(),
        )

    def __str__(self) -> str:
        words = [
            f"torch {self.torch} on {self.device}",
            f"{self.threads} thread{'s' * (self.threads != 1)}",
            f"deterministic algorithms {_on(self.algorithms)}",
            f"cudnn benchmark {_on(self.cudnn_benchmark)}, deterministic {_on(self.cudnn_deterministic)}",
            f"tf32 {_on(self.tf32)}",
        ]
        return ", ".join(words + ([] if self.workspace is None else [f"{_CUBLAS}={self.workspace}"]))


def _on(flag: bool) -> str:
    return "on" if flag else "off"


@contextlib.contextmanager
def deterministic(*, threads: int | None = 1, algorithms: bool = True, tf32: bool = False) -> Iterator[Pinned]:
    """Pin what can change the bits of the same program, and put everything back at the end.

    With ``with deterministic():`` a kernel that has no deterministic form raises an error that names it; cuDNN does
    not choose its algorithms by their speed; and ``CUBLAS_WORKSPACE_CONFIG`` is set where it was not, which counts if
    nothing has been multiplied on a GPU before. It is what a run should be trained with whose laws are proven with it:
    a proof under these settings says nothing about a run without them.

    Args:
        threads: the number of threads that kernels on the CPU use, which changes bits; ``None`` leaves it as it is.
        algorithms: whether non-deterministic kernels are refused.
        tf32: whether products on a GPU may be rounded to TF32: as deterministic, but other bits.

    Yields:
        What is pinned now, for a report.

    Raises:
        ValueError: ``threads`` is less than 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, or None for as many as there are, got {threads}")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    flags = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    with _compiler_pinned() if algorithms else contextlib.nullcontext():
        try:
            if threads is not None:
                torch.set_num_threads(threads)
            if algorithms:
                # torch.use_deterministic_algorithms does the same and imports the compiler, which takes seconds.
                torch.set_deterministic_debug_mode("error")
            cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = False, True, tf32, tf32
            yield Pinned.now()
        finally:
            torch.set_num_threads(before[0])
            torch.set_deterministic_debug_mode(before[1])
            cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = flags


@contextlib.contextmanager
def _compiler_pinned() -> Iterator[None]:
    """Environment variables that libraries read when they are first used, and the compiler if it is there already."""
    added = [name for name in _VARIABLES if name not in os.environ]
    os.environ.update({name: _VARIABLES[name] for name in added})
    inductor = _inductor()
    flag = None if inductor is None else inductor.deterministic
    if inductor is not None:
        inductor.deterministic = True
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        if _inductor() is not None:
            _inductor().deterministic = os.environ.get(_INDUCTOR) == "1" if flag is None else flag


def _inductor() -> Any:
    return sys.modules.get("torch._inductor.config")
