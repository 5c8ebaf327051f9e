"""The memory bill of a step."""

from __future__ import annotations

import dataclasses

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclasses.dataclass(frozen=True)
class MemoryBill:
    """How many bytes of tensors one call of a step takes, over all devices; printed, it is a table.

    Tensors that share memory count once. What a kernel takes for itself while it runs and the rounding of an allocator
    are not tensors: on a GPU leave some tens of megabytes for them, and for the libraries.

    Attributes:
        params: of the trainable tensors.
        buffers: of the other tensors of the module.
        opt_state: of the optimiser's memory.
        averages: of the averaged parameters.
        other: of all else in the state: key, bookkeeping, ``extra``.
        batch: of the batch, or of this process's micro-batches together.
        activations: the most that is kept for the backward pass at one time, parameters and batch not
            counted again; ``None`` where the step takes gradients in a way that does not tell (``torch.func``).
        peak: the most that is alive at one time: state, batch, activations, gradients, the new state and all between.
        donated: whether the new state was written into the memory of the old one.
    """

    params: int
    buffers: int
    opt_state: int
    averages: int
    other: int
    batch: int
    activations: int | None
    peak: int
    donated: bool

    @property
    def state(self) -> int:
        """Bytes of the whole state, which is also about what a checkpoint takes on the disk."""
        return self.params + self.buffers + self.opt_state + self.averages + self.other

    @property
    def work(self) -> int:
        """Bytes at the peak beside the old state and the batch."""
        return self.peak - self.state - self.batch

    def __str__(self) -> str:
        rows = [
            ("params", self.params),
            ("buffers", self.buffers),
            ("optimiser state", self.opt_state),
            ("averages", self.averages),
            ("other state", self.other),
            ("batch", self.batch),
            ("work at the peak", self.work),
            ("peak", self.peak),
        ]
        lines = [f"{name:<28}{_human(size):>12}" for name, size in rows if size or name == "params"]
        kept = "not known" if self.activations is None else _human(self.activations)
        how = "the new state takes the place of the old one" if self.donated else "old and new state are both there"
        title = f"{'memory of one step':<28}{'tensors':>12}"
        lines.insert(-1, f"{'  kept for backward, at most':<28}{kept:>12}")
        return "\n".join([title, *lines, f"({how})"])


def _human(size: int) -> str:
    """Three digits at least, and a unit of 1024."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} B" if unit == 0 else f"{value:.2f} {_UNITS[unit]}"
