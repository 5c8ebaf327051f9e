"""The processes that train together, seen from one of them."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from ..errors import NotTraceable, PeerLost
from ..tracing import is_traced
from ..types import Json
from .buckets import buckets
from .channel import Channel
from .environment import Place, place
from .exchange import exchange, exchange_flat
from .faults import GRACE, Note, Notes, is_backends, peer_lost
from .operator import exchange_traced, register
from .reduction import Partial, Term, leaves_of, reduce_alone

TIMEOUT = 600.0
"""Seconds that a collective waits for the others."""


class World:
    """The processes of a job. Alone, every method is the identity and costs nothing.

    Every method that talks to the others is called by all of them, in the same order; it raises `PeerLost` if one is
    missing for longer than the timeout.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
        iteration: the iteration that is being trained, for messages; ``None`` outside of a run.
    """

    def __init__(self, channel: Channel | None = None, notes: Notes | None = None, *, owned: bool = False) -> None:
        self.rank = 0 if channel is None else channel.rank
        self.size = 1 if channel is None else channel.size
        self.iteration: int | None = None
        self._channel = channel
        self._owned = owned
        self._notes = notes or Notes(None, self.rank, self.size)
        self._begun: list[Any] = []

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks to people: rank 0."""
        return self.rank == 0

    @property
    def group(self) -> Any:
        """The process group of ``torch.distributed``; ``None`` alone."""
        return None if self._channel is None else self._channel.group

    @property
    def together(self) -> bool:
        """Whether this process has not left the others. Alone, it never does."""
        return self._channel is None or self._channel.group is not None

    def reduce(self, partial: Partial) -> Term:
        """The sum of the terms of all processes, in the order that ``partial`` names; takes its blocks over.

        Raises:
            NotTraceable: a ``torch.func`` transform is active, and there are several processes.
        """
        if self._channel is None:
            return reduce_alone(partial)
        if torch.compiler.is_compiling():
            return exchange_traced(partial)
        if is_traced():
            raise NotTraceable(
                "a torch.func transform (an ensemble, a gradient through training) cannot reach other processes, of "
                f"which there are {self.size - 1}: run it on one process"
            )
        return self._talk("summing the gradients", exchange, partial)

    def sum_(self, flats: Sequence[torch.Tensor]) -> None:
        """Replace each vector by the sum over all processes."""
        if self._channel is not None:
            self._talk("summing tensors", Channel.sum_, flats)

    def gather(self, flat: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
        """The vectors of all processes, by rank; that of rank r has ``sizes[r]`` elements."""
        if self._channel is None:
            return [flat]
        return self._talk("gathering tensors", Channel.gather, flat, sizes)

    def broadcast_(self, flat: torch.Tensor, source: int = 0) -> None:
        """Replace the vector by that of rank ``source``."""
        if self._channel is not None:
            self._talk(f"hearing from rank {source}", Channel.broadcast_, flat, source)

    def start_max_(self, flat: torch.Tensor) -> Callable[[], None]:
        """Begin to replace the CPU vector by the largest elements over all processes; call the result to wait."""
        if self._channel is None:
            return lambda: None
        # Only here: work that somebody holds keeps the connections open after this process has left.
        self._begun = [self._talk("agreeing with the others", Channel.start_max_, flat)]
        return lambda: self._talk("agreeing with the others", lambda _: self._begun.pop().wait())

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        self.sum_([torch.zeros(1)])

    def tell_all(self, message: Json, source: int = 0) -> Json:
        """The message of rank ``source``, on every process; what the others hand over is ignored."""
        if self._channel is None:
            return message
        data = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        length = torch.tensor([data.numel()])
        self.broadcast_(length, source)
        if self.rank != source:
            data = torch.empty(int(length), dtype=torch.uint8)
        self.broadcast_(data, source)
        told: Json = json.loads(data.numpy().tobytes())
        return told

    def note(self, kind: str, text: str) -> None:
        """Leave a note for those who will miss this process, before it leaves."""
        if self._channel is not None:
            self._notes.tell(Note(kind, text))  # type: ignore[arg-type]

    def explained(self, error: BaseException) -> BaseException:
        """``error``, or the `PeerLost` that says what it means if it comes from a backend."""
        if self._channel is None or not is_backends(error):
            return error
        return self._lost("in a collective of the step", error)

    def leave(self) -> None:
        """Close the connections, so that whoever still waits for this process hears of it at once."""
        if self._channel is not None:
            self._begun.clear()
            group, self._channel.group = self._channel.group, None
            if self._owned and group is not None:
                with contextlib.suppress(Exception):  # it may be broken already
                    dist.destroy_process_group(group)

    def _talk(self, doing: str, call: Callable[..., Any], *arguments: Any) -> Any:
        channel = self._channel
        if channel is None or channel.group is None:
            raise PeerLost(f"rank {self.rank} of {self.size}, {doing}: this process has left the others")
        try:
            return call(channel, *arguments)
        except RuntimeError as error:
            raise self._lost(doing, error) from error

    def _lost(self, doing: str, error: BaseException) -> BaseException:
        self.leave()
        where = "" if self.iteration is None else f" in iteration {self.iteration}"
        return peer_lost(self._notes, self.rank, self.size, doing, where, error)


ALONE = World()
_open: list[World] = []
_default: dict[Any, World] = {}


def connect(timeout: float = TIMEOUT) -> World:
    """Join the other processes of this job, as the environment tells (torchrun's variables); alone if there are none.

    `helios_fn.run` does this by itself. Call it first in a loop of your own.

    Args:
        timeout: seconds to wait for the others, here and in each collective.

    Raises:
        ValueError: the environment contradicts itself.
        PeerLost: the others did not come in time.
    """
    if not dist.is_available():
        return ALONE
    here = place()
    if not dist.is_initialized():
        if here.size == 1:
            return ALONE
        _join(here, timeout)
    return current()


def _join(here: Place, timeout: float) -> None:
    rank, size, limit = here.rank, here.size, datetime.timedelta(seconds=timeout)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    try:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if attempt == "0" or here.local_size < size:  # machines count their attempts each for itself
            dist.init_process_group(backend, timeout=limit)
        else:
            # torchrun keeps its store for all attempts, and in it the addresses of those that were killed.
            store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=limit))
            store = dist.PrefixStore(f"attempt-{attempt}", store)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except dist.DistError as error:
        raise peer_lost(Notes(None, rank, size), rank, size, "waiting for the others to start", "", error) from error
    atexit.register(_part)


def _part() -> None:
    # While anybody holds a group its threads live, and what they hold last would be freed as the interpreter ends.
    for world in _default.values():
        world.leave()
    _default.clear()
    if dist.is_initialized():
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def current() -> World:
    """The processes that this one trains with right now: those of the run in progress, else all of the job."""
    if _open:
        return _open[-1]
    if not dist.is_available() or not dist.is_initialized():
        return ALONE
    group = dist.group.WORLD
    known = _default.get(group)
    if known is None:
        _default.clear()
        known = _default[group] = _world(group, TIMEOUT)
    return known


@contextlib.contextmanager
def opened(timeout: float = TIMEOUT) -> Iterator[World]:
    """Connections of their own for one run, to the processes that `connect` joined; `current` meanwhile.

    Closed at the end, so that a process which leaves a run early is noticed at once.
    """
    joined = connect(timeout)
    if joined.size == 1:
        world = World()
    else:
        try:
            group = dist.new_group(timeout=datetime.timedelta(seconds=timeout))
        except RuntimeError as error:
            raise joined._lost("opening the connections of a run", error) from error
        world = _world(group, timeout, owned=True)
    _open.append(world)
    try:
        yield world
    except BaseException as error:
        world.note("failed", f"failed: {type(error).__name__}: {error}"[:300])
        raise
    finally:
        _open.remove(world)
        world.leave()


def _reduce_flat(partial: Partial) -> list[torch.Tensor]:
    """What the operator in a compiled region does when it runs."""
    world = current()
    found = buckets(leaves_of(partial.blocks[0].term))
    flats: list[torch.Tensor] = world._talk("summing the gradients", exchange_flat, partial, found)
    return flats


def _world(group: Any, timeout: float, *, owned: bool = False) -> World:
    channel = Channel(group)
    if channel.size == 1:
        return World()
    store = dist.distributed_c10d._get_default_store()
    register(_reduce_flat)
    names = dist.PrefixStore(f"helios_fn/{group.group_name}", store)
    notes = Notes(names, channel.rank, channel.size, min(GRACE, timeout))
    return World(channel, notes, owned=owned)
