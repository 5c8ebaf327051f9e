"""Ready-made observers. Everything else that wants to see a run derives from `helios_fn.Observer`."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from .types import Observer, Reason, RunInfo


class Profile(Observer):
    """Records some iterations with ``torch.profiler``: a trace to look at, and a table of what took longest.

        run(step, state, loader, cfg, observers=[observers.Profile()])

    The trace is a JSON file for ``chrome://tracing`` or https://ui.perfetto.dev; in it each iteration has the spans
    ``data_wait``, ``step``, ``validation`` and ``checkpoint``, so that gaps of the loader are seen beside the kernels.
    The table beside it (``.txt``) sums up operators. Files are named by the iterations that they show. Training is
    slower while it is recorded; its bits are the same.

    Args:
        wait: iterations of this launch to let pass first: compilation, caches, filling the loader's queues.
        warmup: iterations to record and throw away: the profiler's own beginning. At least 1.
        active: iterations to keep.
        path: the folder to write to; ``None`` for ``profile`` in the log folder, which needs a root.
        memory: also record allocations; shapes of operators are recorded with them.
        stacks: also record Python stacks: slow, and large files.

    Raises:
        ValueError: a number is not one, or there is no folder to write to.
    """

    keeps_states = False

    def __init__(
        self,
        *,
        wait: int = 10,
        warmup: int = 2,
        active: int = 5,
        path: str | PathLike[str] | None = None,
        memory: bool = False,
        stacks: bool = False,
    ) -> None:
        for name, value, least in (("wait", wait, 0), ("warmup", warmup, 1), ("active", active, 1)):
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        self._wait, self._warmup, self._active = wait, warmup, active
        self._path = None if path is None else Path(path)
        self._memory, self._stacks = memory, stacks
        self._profiler: Any = None

    def on_start(self, info: RunInfo, state: Any) -> None:
        """Begin to count."""
        if self._path is None and info.log_dir is None:
            raise ValueError("there is no folder for a profile: give Profile a path, or the run a root")
        self._folder = self._path if self._path is not None else info.log_dir / "profile"  # type: ignore[operator]
        self._rank = f"_rank_{info.rank}" if info.processes > 1 else ""
        self._done = 0
        self._profiler = self._make() if self._wait == 0 else None

    def on_iteration(self, state: Any) -> None:
        """Count; begin and end where it is time to."""
        self._done += 1
        if self._profiler is not None:
            self._profiler.step()
            if self._done == self._wait + self._warmup + self._active:
                self._write(state.counters.iteration)
        elif self._done == self._wait:
            self._profiler = self._make()

    def on_end(self, state: Any, reason: Reason | None) -> None:
        """Write what there is, if the run ends before all was recorded."""
        if self._profiler is None:
            return
        if self._done > self._wait + self._warmup and state is not None:
            self._write(state.counters.iteration)
        else:
            self._profiler.stop()
            self._profiler = None

    def _make(self) -> Any:
        from torch import profiler  # it takes a while, and few runs want it

        made = profiler.profile(
            # One more than is counted, for the recording is ended by hand.
            schedule=profiler.schedule(wait=0, warmup=self._warmup, active=self._active + 1, repeat=1),
            record_shapes=self._memory,
            profile_memory=self._memory,
            with_stack=self._stacks,
        )
        made.start()
        return made

    def _write(self, iteration: int) -> None:
        made, self._profiler = self._profiler, None
        made.stop()
        first = iteration - min(self._active, self._done - self._wait - self._warmup) + 1
        self._folder.mkdir(parents=True, exist_ok=True)
        name = self._folder / f"iterations_{first}_to_{iteration}{self._rank}"
        made.export_chrome_trace(f"{name}.json")
        longest = "self_cuda_time_total" if _uses_cuda(made) else "self_cpu_time_total"
        name.with_name(f"{name.name}.txt").write_text(made.key_averages().table(sort_by=longest, row_limit=30))


def _uses_cuda(profiler: Any) -> bool:
    import torch

    return torch.cuda.is_available() and any(event.device_type.name == "CUDA" for event in profiler.events())
