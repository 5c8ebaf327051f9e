"""Finding out which process is missing when a collective fails, and why.

A backend says that a connection broke, or that nothing came in time; not who is to blame. So each process that leaves,
fails or finds the others gone writes a note into the job's store, and reads those of the others for a while. Nothing of
this happens as long as all is well.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch.distributed as dist

from ..errors import PeerLost

GRACE = 10.0
"""Seconds for which the notes of the others are waited for. Those who lost the same peer find it out one by one."""

_POLL = 0.05
_SIGNS = ("gloo", "NCCL", "Connection closed by peer", "Application timeout", "timed out", "Timed out")


class Note(NamedTuple):
    """What one process said last: it ``failed``, ``left`` the run, or ``lost`` the others."""

    kind: Literal["failed", "left", "lost"]
    text: str


class Notes:
    """The notes of the processes of one run.

    Args:
        store: the job's store, or ``None`` where there is no way to it: then nobody hears of anybody.
        rank: this process.
        size: the number of processes.
        grace: see `GRACE`.
    """

    def __init__(self, store: Any, rank: int, size: int, grace: float = GRACE) -> None:
        self._store, self._rank, self._size, self._grace = store, rank, size, grace
        self._told = False

    def tell(self, note: Note) -> None:
        """Leave a note; only the first one of a process counts, and a store that is gone is no reason to fail."""
        if not self._told and self._store is not None:
            self._told = True
            _bounded(lambda: self._store.set(str(self._rank), json.dumps(note)), self._grace)

    def wait(self) -> dict[int, Note] | None:
        """The notes of all processes that leave one in time; ``None`` if the store does not answer."""
        if self._store is None:
            return {}
        found: dict[int, Note] = {}
        deadline = time.monotonic() + self._grace

        def read() -> bool:
            for rank in range(self._size):
                if rank not in found and self._store.check([str(rank)]):
                    found[rank] = Note(*json.loads(self._store.get(str(rank))))
            return True

        while len(found) < self._size:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            # A store behind a cut cable answers neither yes nor no.
            if _bounded(read, left) is None and time.monotonic() < deadline:
                return found or None
            time.sleep(_POLL)
        return found


def peer_lost(notes: Notes, rank: int, size: int, doing: str, where: str, error: BaseException) -> PeerLost:
    """The error to raise where a collective failed.

    Args:
        notes: where to ask.
        rank: this process.
        size: the number of processes.
        doing: what the collective was for.
        where: which iteration, if any.
        error: what the backend said.
    """
    notes.tell(Note("lost", f"{doing}{where}"))
    found = notes.wait()
    backend = str(error).strip().split("\n")[0][:200]
    head = f"rank {rank} of {size}, {doing}{where}: "
    tail = f" (the backend says: {backend})"
    if found is None:
        return PeerLost(f"{head}the others cannot be reached, nor the store through which they would say why{tail}")
    causes = [f"rank {at} {note.text}" for at, note in sorted(found.items()) if note.kind != "lost"]
    silent = [at for at in range(size) if at not in found and at != rank]
    if silent:
        who = f"rank {silent[0]} does" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))} do"
        causes.append(f"{who} not answer: killed, frozen, cut off or still busy")
    if not causes:
        causes = ["the connection broke, though all others still answer"]
    return PeerLost(f"{head}{'; '.join(causes)}{tail}", ranks=tuple(_blamed(found, silent)))


def is_backends(error: BaseException) -> bool:
    """Whether an error looks like one of a collective, which a step of the user's own or a compiled region raised."""
    if isinstance(error, PeerLost):
        return False
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def _blamed(found: dict[int, Note], silent: list[int]) -> list[int]:
    return sorted({*silent, *(rank for rank, note in found.items() if note.kind != "lost")})


def _bounded(call: Callable[[], Any], seconds: float) -> Any:
    """The result of ``call``; ``None`` if it takes too long or fails. It may block for ever in a thread of its own."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append(call())
        except Exception:  # whatever a store raises when its host is gone
            box.append(None)

    thread = threading.Thread(target=run, daemon=True, name="helios_fn-notes")
    try:
        thread.start()
    except RuntimeError:  # no memory is left for one; the failure that led here must not be hidden
        return None
    thread.join(seconds)
    return box[0] if box else None
