"""Numbers as 0-d tensors on the CPU, kept where they are asked for again: to make one takes longer than to add two."""

from __future__ import annotations

import torch

_WINDOW = 256


class Constants:
    """The last value of each name: a learning rate is often what it was."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, torch.Tensor]] = {}

    def tensor(self, name: str, value: float) -> torch.Tensor:
        """``value`` as float64."""
        known, made = self._last.get(name, (None, None))
        if made is not None and known == value != 0 and made._version == 0:
            return made
        made = torch.scalar_tensor(value, dtype=torch.float64, device="cpu")
        if not made.is_inference():  # which has no version
            self._last[name] = (value, made)
        return made


class Counts:
    """Consecutive integers, made together: a run asks for one after the other."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._window: tuple[int, tuple[torch.Tensor, ...]] = 0, ()  # one value, as other threads may count too

    def tensor(self, number: int) -> torch.Tensor:
        """``number``, rounded to the dtype; only to be read."""
        first, made = self._window
        if 0 <= number - first < len(made) and made[0]._version == 0:  # all are views of one tensor, and its version
            return made[number - first]
        numbers = torch.arange(number, number + _WINDOW, dtype=torch.int64, device="cpu")
        made = numbers.to(self._dtype).unbind()
        if not made[0].is_inference():  # which has no version
            self._window = number, made
        return made[0]
