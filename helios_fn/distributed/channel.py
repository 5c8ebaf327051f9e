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
        self._options = dist.AllToAllOptions()
        self._options.asyncOp = False

    def gather(self, flat: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
        """The vectors of all processes, by rank; that of rank r has ``sizes[r]`` elements. The own one is ``flat``."""
        # One round of messages between all pairs. A ring takes size - 1 rounds, and small messages cost their rounds.
        outgoing = flat if self.size == 2 else flat.repeat(self.size - 1)
        received = self.swap(outgoing, [flat.numel()] * self.size, sizes)
        received[self.rank] = flat
        return received

    def swap(self, flat: torch.Tensor, given: Sequence[int], taken: Sequence[int]) -> list[torch.Tensor]:
        """Give parts of ``flat`` to the others and return theirs, by rank; to and from this rank itself goes nothing.

        ``flat`` is made of the parts for all ranks but this one, in order: ``given[r]`` elements for rank r. What comes
        has ``taken[r]`` elements.
        """
        # A copy to itself would cost this process as much as one from another.
        given, taken = ([0 if rank == self.rank else n for rank, n in enumerate(sizes)] for sizes in (given, taken))
        received = flat.new_empty(sum(taken))
        dist.all_to_all_single(received, flat, taken, given, group=self.group)
        return list(received.split(taken))

    def trade(self, flat: torch.Tensor, into: torch.Tensor) -> None:
        """Between two processes: give the bytes ``flat`` to the other, and take as many from it into ``into``."""
        sizes = [0 if rank == self.rank else flat.numel() for rank in range(2)]
        # What the public function ends in. It asks so much about its arguments that a small message takes twice the
        # time; where torch lacks the name, it is called.
        run = getattr(self.group, "alltoall_base", None)
        if run is None:
            dist.all_to_all_single(into, flat, sizes, sizes, group=self.group)
        else:
            run(into, flat, sizes, sizes, self._options).wait()

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
