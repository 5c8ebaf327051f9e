"""Where the time of a run goes, how fast it is, and what memory it takes: observations, which no state ever sees."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch.autograd import profiler

from .. import tree
from ..sinks import TIME_SPLIT
from ..types import Delivery

_Returned = TypeVar("_Returned")


class Stopwatch:
    """Counts from one train row to the next; `read` gives what has been observed since, and starts anew.

    Three looks at the clock per iteration: before its data is waited for, when it is there, and after the step. With
    an accelerator the ``step`` is the time in which the host is held up by it: handing work over, and waiting for it
    where something is asked for, as the metrics are for a row. While one of torch's profilers records, the parts are
    spans in its trace, too.

    A batch has as many samples as the leading dimension of its first tensor that has one. What other processes read
    is taken to be of the same size.

    Args:
        device: the accelerator whose memory counts; ``None`` for that of the process.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self._span: profiler.record_function | None = None
        self.restart(0)

    def restart(self, micro_step: int) -> None:
        """Forget everything, and count from ``micro_step`` on."""
        self._spent = dict.fromkeys(TIME_SPLIT[2:], 0.0)
        self._waited = self._stepped = 0.0
        self._samples: int | None = 0
        self._own = 0
        self._micro_step = micro_step
        self._begun = self._at = perf_counter()

    def waits(self) -> None:
        """From now on the data is waited for."""
        if profiler._is_profiler_enabled:
            self._mark("data_wait")
        self._at = perf_counter()

    def received(self, delivery: Delivery) -> None:
        """The data is there, and the step begins."""
        if profiler._is_profiler_enabled:
            self._mark("step")
        now = perf_counter()
        self._waited += now - self._at
        self._at = now
        items = delivery.items
        self._own += len(items)
        if self._samples is not None:
            for item in items:
                size = samples(item)
                if size is None:
                    self._samples = None
                    return
                self._samples += size

    def stepped(self) -> None:
        """The step has returned."""
        self._stepped += perf_counter() - self._at
        if self._span is not None:
            self._mark(None)

    def timed(self, part: str, action: Callable[..., _Returned], *arguments: Any) -> _Returned:
        """Call ``action``; its time belongs to ``part``."""
        self._mark(part)
        begun = perf_counter()
        try:
            return action(*arguments)
        finally:
            self._mark(None)
            taken = perf_counter() - begun
            if part == "step":
                self._stepped += taken
            else:
                self._spent[part] += taken

    def _mark(self, part: str | None) -> None:
        """In the trace of a profiler that is running, end the span of one part and begin that of another."""
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None
        if part is not None and profiler._is_profiler_enabled:
            self._span = profiler.record_function(part)
            self._span.__enter__()

    def read(self, micro_step: int) -> dict[str, float]:
        """What was observed up to ``micro_step``, see `Row`."""
        seconds = perf_counter() - self._begun
        done = micro_step - self._micro_step
        found: dict[str, float] = {}
        if seconds > 0:
            if self._samples is not None and self._own > 0:
                found["samples_per_second"] = self._samples * done / self._own / seconds
            found["micro_batches_per_second"] = done / seconds
        parts = {"data_wait": self._waited, "step": self._stepped, **self._spent}
        parts["other"] = max(0.0, seconds - sum(parts.values()))
        memory = peak_memory(self._device)
        self.restart(micro_step)
        return {**found, **parts} if memory is None else {**found, **parts, "peak_memory": float(memory)}


def samples(batch: Any) -> int | None:
    """The number of samples in a batch: the leading dimension of its first tensor that has one, ``None`` without."""
    kind = type(batch)
    if kind is torch.Tensor:
        return batch.size(0) if batch.dim() else None
    if kind is tuple or kind is list:
        parts = batch
    elif kind is dict:
        parts = batch.values()
    else:  # not asked of all: it costs as much as the rest of what is done per iteration
        parts = [leaf.as_subclass(torch.Tensor) for leaf in tree.leaves(batch) if isinstance(leaf, torch.Tensor)]
    for part in parts:
        found = samples(part)
        if found is not None:
            return found
    return None


def accelerator_of(params: Any) -> torch.device | None:
    """The CUDA device on which the parameters lie, if any does."""
    devices = (leaf.device for leaf in tree.leaves(params) if isinstance(leaf, torch.Tensor))
    return next((device for device in devices if device.type == "cuda"), None)


def peak_memory(device: torch.device | None) -> int | None:
    """The most bytes that were taken at once since the process began; ``None`` where the system does not tell."""
    if device is not None:
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
