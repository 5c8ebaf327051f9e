"""Worker processes that stay alive and can be sent to any position.

An endless stream of tasks goes through torch's `DataLoader`, which brings the batches back in order.
Opening the stream again makes it start over with other tasks: the workers are kept.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Sampler

from .plan import Task
from .sampling import Failure, Reader, brief
from .shared import forget


class PoolOptions(NamedTuple):
    """How workers are run; nothing here changes a byte of a batch."""

    workers: int = 0
    prefetch: int = 2
    multiprocessing_context: Any = None
    pin_memory: bool = False
    worker_init: Callable[[int], None] | None = None


class Pool:
    """Worker processes that read the batches of one stream of tasks at a time.

    They start with the first stream, and again with the next one after `close` or a loss.
    """

    def __init__(self, reader: Reader, options: PoolOptions) -> None:
        self._reader = reader
        self._options = options
        self._tasks = _Tasks()
        self._loader: DataLoader[Any] | None = None
        self._iterator: Any = None
        self._process = 0
        self._at_exit = functools.partial(_close, weakref.ref(self))

    def stream(self, tasks: Iterator[Task]) -> Iterator[Any]:
        """The batches of ``tasks`` in order. Reading ahead starts at once; an earlier stream ends.

        Raises:
            TypeError: the workers cannot be started because something cannot be sent to them.
            RuntimeError: they cannot be started; (also while reading) a batch could not be read, or a worker is gone.
        """
        self._tasks.source, self._tasks.error = tasks, None
        explained = _not_started if self._loader is None else _lost
        try:
            if self._loader is None:
                self._loader = self._start()
            with torch.device("cpu"):  # the iterator draws from that generator, whatever the default device
                self._iterator = iter(self._loader)
            _stop_signalling(self._iterator)
        except Exception as error:
            raise self._failed(error, explained) from error
        return self._results(self._iterator)

    def close(self) -> None:
        """Stop the workers, in bounded time: one that does not listen is killed."""
        if os.getpid() != self._process:
            return  # a forked copy of the pool, whose workers belong to the process that started them
        atexit.unregister(self._at_exit)
        iterator, self._iterator, self._loader = self._iterator, None, None
        if iterator is not None:
            # Not left to the garbage collector: a traceback may keep the iterator alive.
            iterator._shutdown_workers()
            for worker in iterator._workers:
                if worker.is_alive():
                    worker.kill()
                    worker.join()
            forget(worker.pid for worker in iterator._workers)

    def _start(self) -> DataLoader[Any]:
        # Registered late, so that it runs before multiprocessing's own exit handler, which would kill the
        # workers, which torch's signal handler would then report as an error.
        atexit.register(self._at_exit)
        self._process = os.getpid()
        options, context = self._options, self._options.multiprocessing_context
        if context is None or isinstance(context, str):
            context = multiprocessing.get_context(context)
        return DataLoader(
            self._reader,  # type: ignore[arg-type]  # all that is asked of it is __getitem__
            batch_size=None,
            sampler=self._tasks,
            collate_fn=_as_it_is,
            num_workers=options.workers,
            prefetch_factor=options.prefetch,
            multiprocessing_context=context,
            pin_memory=options.pin_memory and torch.cuda.is_available(),
            worker_init_fn=_WorkerStart(options.worker_init, forked=context.get_start_method() == "fork"),
            persistent_workers=True,
            # Without one of its own, an iterator draws a seed from the global generator.
            generator=torch.Generator("cpu"),
        )

    def _results(self, iterator: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                result = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                raise self._failed(error, _lost) from error
            if type(result) is Failure:
                failure = RuntimeError(result.message)
                failure.add_note(f"In the worker:\n{result.traceback}")
                raise failure
            yield result

    def _failed(self, error: Exception, explained: Callable[[Exception], Exception]) -> Exception:
        """The error to raise in place of one that came out of the `DataLoader`."""
        if error is self._tasks.error:
            return RuntimeError(f"the next batch could not be planned ({brief(error)})")
        self.close()
        return explained(error)


def _lost(error: Exception) -> Exception:
    # Of any kind: a worker that dies while it hands over a batch leaves a broken connection behind.
    return RuntimeError(
        f"a worker process of the loader is gone ({brief(error)}). It was killed (out of memory?) or left by "
        "itself; open the loader again to go on with new workers, or use workers=0 to see what happens"
    )


def _not_started(error: Exception) -> Exception:
    message = f"the workers could not be started ({brief(error)})"
    if isinstance(error, OSError | RuntimeError | ValueError):  # others come from sending
        return RuntimeError(message)
    return TypeError(
        f"{message}: unless they are forked, dataset, collate, transform and worker_init are sent to them and must "
        "be defined at the top of a module; multiprocessing_context='fork' starts them without sending"
    )


class _Tasks(Sampler[Task]):
    """The sampler of the `DataLoader`: hands out what it was given last."""

    def __init__(self) -> None:
        self.source: Iterator[Task] = iter(())
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Task]:
        try:
            yield from self.source
        except Exception as error:
            self.error = error
            raise


class _WorkerStart:
    """Prepares a worker process, then calls the user's own preparation."""

    def __init__(self, user: Callable[[int], None] | None, *, forked: bool) -> None:
        self._user = user
        self._forked = forked

    def __call__(self, worker: int) -> None:
        # A signal to the whole process group is for the main process to answer, which may need a few more
        # batches to stop in order. A handler, since ignoring would be inherited by programs that a dataset runs.
        signal.signal(signal.SIGINT, _not_for_me)
        signal.signal(signal.SIGTERM, _not_for_me)
        sys.excepthook = _quiet_at_a_lost_connection
        if not self._forked:
            # A fresh interpreter sometimes aborts while it is torn down, which the main process would take
            # for a crash. Leave before that, as the last of multiprocessing's exit handlers.
            multiprocessing.util.Finalize(None, _leave, exitpriority=-1000)
        if self._user is not None:
            self._user(worker)


def _stop_signalling(iterator: Any) -> None:
    """Have the loss of a worker noticed while waiting for its batch, within 5 seconds.

    By default torch notices it at once, in a signal handler that raises in the middle of whatever the main
    process does then, which may be an update that must not be cut in two.
    """
    if getattr(iterator, "_worker_pids_set", False):
        torch.utils.data._utils.signal_handling._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False


def _not_for_me(signum: int, frame: Any) -> None:
    pass


def _quiet_at_a_lost_connection(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    # A main process that is killed while a batch is handed over would have its workers print tracebacks,
    # from multiprocessing's thread, after its own end. One that lives says itself what it could not read.
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _as_it_is(batch: Any) -> Any:
    return batch


def _close(pool: weakref.ref[Pool]) -> None:
    found = pool()
    if found is not None:
        found.close()
