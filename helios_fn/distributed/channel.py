"""What is sent between the processes of one group: flat tensors, by the collectives of ``torch.distributed``.

Every function is called by all processes of the group, in the same order. Errors are those of the backend; `World`
turns them into `PeerLost`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


class Channel:
    """The messages of one process group.

    Attributes:
        rank: this process's number in the group.
        size: the number of processes.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def gather(self, flat: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
        """The vectors of all processes, by rank; that of rank r has ``sizes[r]`` elements."""
        # One round of messages between all pairs. A ring takes size - 1 rounds, and small messages cost their rounds.
        return self.swap(flat.repeat(self.size), [flat.numel()] * self.size, sizes)

    def swap(self, flat: torch.Tensor, given: Sequence[int], taken: Sequence[int]) -> list[torch.Tensor]:
        """Give the r-th part of ``flat``, of ``given[r]`` elements, to rank r; return what this one was given."""
        received = flat.new_empty(sum(taken))
        dist.all_to_all_single(received, flat, list(taken), list(given), group=self.group)
        return list(received.split(list(taken)))

    def sum_(self, flats: Sequence[torch.Tensor]) -> None:
        """Replace each vector by the sum over all processes, the same bits on each of them, in an order of its own."""
        works = [dist.all_reduce(flat, group=self.group, async_op=True) for flat in flats]
        for work in works:
            work.wait()

    def broadcast_(self, flat: torch.Tensor, source: int) -> None:
        """Replace the vector by that of rank ``source``."""
        dist.broadcast(flat, group_src=source, group=self.group)

    def start_max_(self, flat: torch.Tensor) -> Any:
        """Begin to replace the CPU vector by the largest elements over all processes; ``wait()`` for the result."""
        return dist.all_reduce(flat, op=dist.ReduceOp.MAX, group=self.group, async_op=True)
