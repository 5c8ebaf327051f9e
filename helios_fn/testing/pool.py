"""Worlds that stay: processes that run one function after the other together, so that many small runs cost little."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import threading
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any, Self, cast

from ..distributed import launch
from ..distributed.environment import is_launched


class Worlds:
    """Calls a function in worlds of any size: ``worlds(fn, *args, processes=n)`` is `helios_fn.distributed.launch`.

    The processes of a size are started when it is first asked for, and then wait for more. They are those of `launch`,
    so a rank that fails is told in its words; its world is ended, and the next call starts another. What the
    user's modules keep in a process is there still in the next call: for new processes there is `launch` itself.

    A context manager, which ends all worlds; the end of this process does so too.
    """

    def __init__(self) -> None:
        self._worlds: dict[int, _World] = {}

    def __call__(self, fn: Callable[..., Any], /, *args: Any, processes: int) -> list[Any]:
        """Each rank's value, in order.

        Raises:
            LaunchFailed: a rank has raised or was lost.
            RuntimeError: this process is itself one of several.
        """
        if is_launched():
            raise RuntimeError(
                "worlds are started from a process that is alone, and this is one of torchrun's or launch's"
            )
        if not self._worlds:
            atexit.register(self.close)
        if processes not in self._worlds:
            self._worlds[processes] = _World(processes)
        try:
            return self._worlds[processes].call(fn, args)
        except BaseException:
            self._worlds.pop(processes).close()  # whatever its ranks are at, the next call needs others
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes; a later call starts new ones."""
        atexit.unregister(self.close)
        while self._worlds:
            self._worlds.popitem()[1].close()


class _World:
    """The processes of one size, under one `launch` that lasts, in a thread of its own."""

    def __init__(self, processes: int) -> None:
        self._error: BaseException | None = None
        self._ranks: list[Connection] = []
        key = secrets.token_bytes(32)
        with Listener(backlog=processes + 1, authkey=key) as listener:
            address = cast("str", listener.address)
            self._thread = threading.Thread(target=self._keep, args=(address, key, processes), daemon=True)
            self._thread.start()
            known: dict[int, Connection] = {}
            while len(known) < processes:
                connection = listener.accept()
                try:
                    known[connection.recv()] = connection
                except EOFError:
                    self._ranks = [*known.values()]
                    self._fail()
        self._ranks = [known[rank] for rank in range(processes)]

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        """Each rank's value."""
        values: dict[int, Any] = {}
        try:
            for connection in self._ranks:
                connection.send((fn, args))
            while len(values) < len(self._ranks):
                awaited = [connection for rank, connection in enumerate(self._ranks) if rank not in values]
                for connection in cast("list[Connection]", wait(awaited)):
                    values[self._ranks.index(connection)] = connection.recv()
        except (EOFError, OSError):
            self._fail()
        return [values[rank] for rank in range(len(self._ranks))]

    def close(self) -> None:
        """Tell the ranks that nothing more will come, and wait for their end."""
        for connection in self._ranks:
            connection.close()
        self._thread.join()

    def _keep(self, address: str, key: bytes, processes: int) -> None:
        try:
            launch(_serve, address, key, processes=processes)
        except BaseException as error:
            self._error = error
        with contextlib.suppress(OSError):  # somebody may still wait for a rank to come
            Client(address, authkey=key).close()

    def _fail(self) -> None:
        self.close()
        raise self._error or RuntimeError("the processes of a world ended without a word")


def _serve(address: str, key: bytes) -> None:
    """The program of a rank: whatever it is asked for, until nobody asks any more."""
    with Client(address, authkey=key) as connection:
        connection.send(int(os.environ["RANK"]))
        while True:
            try:
                fn, args = connection.recv()
            except EOFError:
                return
            connection.send(fn(*args))
