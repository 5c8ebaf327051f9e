"""Whether the processes of a run still hold the same state: a difference is found by comparing digests, and named."""

from __future__ import annotations

import hashlib
import math

import torch

from .. import tree
from ..distributed import World
from ..dtensors import is_sharded
from ..errors import PurityError
from ..state import TrainState


class Replicas:
    """When to compare: after the first iteration of each launch, and then at a fixed cadence.

    Args:
        world: the processes.
        every: iterations between two comparisons.
        launched_at: the iteration at which they started.
    """

    def __init__(self, world: World, every: int, launched_at: int) -> None:
        self._world, self._every, self._first = world, every, launched_at + 1

    def after(self, iteration: int) -> float:
        """The first iteration after ``iteration`` at which a comparison is due."""
        if self._world.size == 1:
            return math.inf
        regular = (iteration // self._every + 1) * self._every
        return min(regular, self._first) if iteration < self._first else regular

    def compare(self, state: TrainState) -> None:
        """Compare, if it is due; see `check_replicas`."""
        iteration = state.counters.iteration
        if self.after(iteration - 1) == iteration:
            check_replicas(self._world, state)


def check_replicas(world: World, state: TrainState) -> None:
    """Check that all processes hold the same state, bit for bit. Costs one pass over the state and a short message.

    Of a sharded leaf each process has its own part, so those are passed over.

    Raises:
        PurityError: they do not; names the first leaf that differs, and the ranks.
    """
    pairs = [(path, leaf) for path, leaf in tree.items(state) if not is_sharded(leaf)]
    leaves = [bytes.fromhex(tree.digest_items([pair]))[:8] for pair in pairs]
    whole = hashlib.sha256(b"".join(leaves)).digest()
    if len(set(_gathered(world, whole, [len(whole)] * world.size))) == 1:
        return
    sizes = [int.from_bytes(size, "big") for size in _gathered(world, len(leaves).to_bytes(8, "big"), [8] * world.size)]
    found = _gathered(world, b"".join(leaves), [8 * size for size in sizes])
    raise PurityError(
        f"the processes hold different states after iteration {state.counters.iteration}: "
        f"{_difference([path for path, _ in pairs], found)}. Gradients, buffers and metrics must come from "
        "hf.microsteps, as those of hf.make_step do, and nothing else in a step may depend on the process"
    )


def _gathered(world: World, data: bytes, sizes: list[int]) -> list[bytes]:
    parts = world.gather(torch.frombuffer(bytearray(data), dtype=torch.uint8), sizes)
    return [part.numpy().tobytes() for part in parts]


def _difference(paths: list[str], found: list[bytes]) -> str:
    """Where the digests of leaves by rank differ, in words."""
    if len({len(each) for each in found}) > 1:
        return f"they have {', '.join(str(len(each) // 8) for each in found)} leaves on ranks 0 to {len(found) - 1}"
    by_leaf = [[each[at : at + 8] for each in found] for at in range(0, len(found[0]), 8)]
    differing = [at for at, values in enumerate(by_leaf) if len(set(values)) > 1]
    first = by_leaf[differing[0]]
    camps = [[str(rank) for rank, value in enumerate(first) if value == camp] for camp in dict.fromkeys(first)]
    sides = " than on ".join(f"rank{'s' * (len(camp) > 1)} {', '.join(camp)}" for camp in camps)
    more = f" (so are {len(differing) - 1} more leaves)" if len(differing) > 1 else ""
    return f"{paths[differing[0]]} is another on {sides}{more}"
