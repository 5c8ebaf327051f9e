"""What one process on each machine does for all that run there: a download, an unpacking."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import distributed

from ..errors import PeerLost
from .environment import Place, place

_BEAT = 2.0  # seconds between two signs of life
_LOOK = 0.05  # seconds between two looks at what the others have done


def once_per_node(fn: Callable[..., Any], /, *args: Any, silence: float = 600.0, **kwargs: Any) -> None:
    """Call ``fn`` in one process on each machine, and return in all processes when it is done on all machines.

    The process with local rank 0 calls it. There is no result, since the others could not have it: what ``fn`` makes
    is on the machine's disk. A process that is alone just calls it. All ranks must come here, in the same order of
    calls.

    ``fn`` may take as long as it likes, whatever the timeout of the collectives: the waiting ranks look into the store
    of torch.distributed's default group, where those that work leave a sign of life every few seconds.

    Args:
        fn: the function; everything else positional or by keyword is for it.
        silence: seconds after which a waiting rank gives up if nothing happens in them: no sign of life from those
            that work, and no further rank that comes here or is done. ``fn`` gives none while it keeps Python's lock.

    Raises:
        Exception: where ``fn`` was called and failed, what it raised.
        PeerLost: on all other ranks, if it failed anywhere (says where), if nobody gives a sign of life, or if the
            store is gone.
        RuntimeError: the process is one of several, and torch.distributed's default group is not there yet.
        ValueError: there is such a group, but the environment does not say which ranks share a machine.
    """
    here = _here()
    if here.size == 1:
        fn(*args, **kwargs)
        return
    with _store_or_lost(here):
        board = _Board(here)
    if here.local_rank == 0:
        with _SignsOfLife(board):
            try:
                fn(*args, **kwargs)
            except BaseException as error:
                with contextlib.suppress(distributed.DistError):
                    board.failed(error)
                raise
    with _store_or_lost(here):
        board.done()
        board.wait_for_all(silence)


def _here() -> Place:
    here = place()
    ready = distributed.is_available() and distributed.is_initialized()
    size = distributed.get_world_size() if ready else 1
    if here.size > 1 and not ready:
        raise RuntimeError(
            f"this is rank {here.rank} of {here.size}, and torch.distributed's default group is not there yet: call "
            "helios_fn.distributed.connect() first"
        )
    if here.size != size:
        raise ValueError(
            f"torch.distributed's default group has {size} ranks, but the environment tells of {here.size} "
            "(WORLD_SIZE): which ranks share a machine is not known. Start them with torchrun or helios_fn's launch"
        )
    return here


@contextlib.contextmanager
def _store_or_lost(here: Place) -> Iterator[None]:
    try:
        yield
    except distributed.DistError as error:
        raise PeerLost(f"rank {here.rank} has lost the store of the process group: who keeps it is gone") from error


class _Board:
    """What the ranks tell each other in the default group's store about one call.

    Numbered by the store itself: each rank counts its own calls there, so that nothing is kept in the process, and
    a second call does not read what was written about the first.
    """

    def __init__(self, here: Place) -> None:
        self._here = here
        # The store of the default group has no public name; torch's own checkpoint code gets it in this way.
        self._store = distributed.distributed_c10d._get_default_store()
        call = self._store.add(f"helios_fn/once/calls/{here.rank}", 1)
        self._key = f"helios_fn/once/{call}"

    def failed(self, error: BaseException) -> None:
        text = f"rank {self._here.rank}: {type(error).__name__}: {error}"
        self._store.set(f"{self._key}/error", text)
        self._store.add(f"{self._key}/failed", 1)

    def beat(self) -> None:
        self._store.add(f"{self._key}/beats", 1)

    def done(self) -> None:
        """Counts ranks and not machines: those may have different numbers of processes."""
        self._store.add(f"{self._key}/done", 1)

    def wait_for_all(self, silence: float) -> None:
        me = f"rank {self._here.rank} waited for what one process per machine does"
        heard, since = -1, time.monotonic()
        while (done := self._read("done")) < self._here.size:
            if self._read("failed"):
                raise PeerLost(f"{me}, and it failed on {self._store.get(f'{self._key}/error').decode()}")
            signs = self._read("beats") + done
            if signs != heard:
                heard, since = signs, time.monotonic()
            elif time.monotonic() - since > silence:
                raise PeerLost(
                    f"{me}: {done} of {self._here.size} ranks are done, and there was no sign of life for {silence:g} "
                    "s. A rank is gone or stopped, or does not call once_per_node"
                )
            time.sleep(_LOOK)

    def _read(self, name: str) -> int:
        return self._store.add(f"{self._key}/{name}", 0)


class _SignsOfLife:
    """A context in which a thread beats, so that a long call differs from a lost rank."""

    def __init__(self, board: _Board) -> None:
        self._board = board
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="helios_fn-once", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_BEAT):
            try:
                self._board.beat()
            except distributed.DistError:  # the store is gone; the rank learns so itself when it is done
                return
