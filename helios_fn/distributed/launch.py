"""Processes on this machine that run one function together."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch import distributed

from . import _child
from ._watch import Child, results
from .devices import check_gpus
from .environment import Place, is_launched, place, variables

_ADDRESS = "127.0.0.1"


def launch(
    fn: Callable[..., Any],
    /,
    *args: Any,
    processes: int | None = None,
    gpus: Sequence[int] | None = None,
    threads: int = 1,
    timeout: float | None = None,
    grace: float = 30.0,
    start_method: str | None = None,
    **kwargs: Any,
) -> list[Any]:
    """Call ``fn(*args, **kwargs)`` in several new processes on this machine and return each rank's value, in order.

    Each process has torchrun's environment variables (see `place`). Their process group is not made here:
    ``helios_fn.distributed.connect`` does that, or ``torch.distributed.init_process_group``, which both find each
    other through a store that this process keeps.

    In a process that torchrun or `launch` has started, ``fn`` is called right here and the list holds its value alone:
    the same script runs under all of them. ``timeout``, ``grace`` and ``start_method`` then have no meaning.

    The script is imported anew by each process: call `launch` under ``if __name__ == "__main__":``. What is sent
    either way is copied by pickle, tensors included. A tensor that is a view takes along all that it is a view of;
    one on a GPU arrives on the GPU of that number here, so return it from the CPU.

    Every process computes with one thread unless ``threads`` says otherwise, however few there are: the number of
    threads changes the bits of some sums, and the number of processes must not.

    A rank fails by raising, by leaving without a value, or by being killed. The others then have ``grace`` seconds to
    notice it, to save and to end; those left get SIGTERM and then SIGKILL. The same happens to all if this process is
    killed. SIGINT, SIGTERM and SIGUSR1 to this process are passed on. If all ranks return a value nevertheless, as
    `run` does, so does `launch`; otherwise the signal has its usual effect here when they have ended. A second
    SIGINT or SIGTERM kills them.

    Args:
        fn: the function, from the top of a module.
        *args: its arguments; likewise ``**kwargs``, except for the names below.
        processes: how many. Default: one for each GPU of ``gpus``; else one for each there is; one without any.
        gpus: the GPUs for the processes, one each, as for `choose_devices`. They are all that the processes see, by
            ``CUDA_VISIBLE_DEVICES``, so that the GPU of local rank 1 is ``cuda:1`` there. Default: all.
        threads: the number of threads of torch's operators in each process.
        timeout: seconds for the whole call. Default: no limit.
        grace: seconds for the others when one has failed.
        start_method: "forkserver", which imports torch and helios_fn once for all processes, or "spawn". Default:
            the first on Linux, the second elsewhere.

    Raises:
        LaunchFailed: a rank has not returned a value; the message begins with the rank and the cause.
        TypeError: the function or an argument cannot be sent, or an argument of `launch` is of the wrong kind.
        ValueError: an argument is out of range or contradicts another one, or torchrun.
        RuntimeError: a script calls `launch` while it is imported by one of the new processes.
    """
    _check_numbers(threads, timeout, grace)
    if processes is not None:
        _integer("processes", processes)
    if is_launched():
        return [_call_here(fn, args, kwargs, processes, gpus, threads)]
    _refuse_import()
    visible = None if gpus is None else _visible(check_gpus(gpus, torch.cuda.device_count()))
    count = _count(processes, gpus)
    context = _context(start_method)
    call = _pickled(fn, args, kwargs)
    store = _store()
    environ = {**os.environ, **_common(threads, visible)}
    children: list[Child] = []
    try:
        for rank in range(count):
            mine = {**environ, **variables(Place(rank, count, rank, count), _ADDRESS, store.port)}
            children.append(_start(context, rank, _child.Terms(mine, threads, grace), call))
        return results(children, timeout=timeout, grace=grace)
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.close()


def _call_here(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    processes: int | None,
    gpus: Sequence[int] | None,
    threads: int,
) -> Any:
    here = place()
    wanted = processes if gpus is None else _count(processes, gpus)
    if wanted is not None and wanted != here.local_size:
        raise ValueError(
            f"{wanted} processes were asked for, but this is already one of {here.local_size} on this machine "
            "(LOCAL_WORLD_SIZE): give both the same number, or leave it to torchrun"
        )
    if gpus is not None:
        if torch.cuda.is_initialized():
            raise RuntimeError("gpus comes too late: CUDA is already in use in this process. Set CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(check_gpus(gpus, torch.cuda.device_count()))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return fn(*args, **kwargs)
    finally:
        torch.set_num_threads(before)


def _integer(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


def _check_numbers(threads: int, timeout: float | None, grace: float) -> None:
    _integer("threads", threads)
    if timeout is not None and not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be a positive number of seconds, or None for no limit, not {timeout!r}")
    if not 0 <= grace < math.inf:
        raise ValueError(f"grace must be a number of seconds, at least 0, not {grace!r}")


def _count(processes: int | None, gpus: Sequence[int] | None) -> int:
    found = torch.cuda.device_count() if gpus is None else len(gpus)
    if processes is None:
        return max(found, 1)
    if gpus is not None and processes != found:
        raise ValueError(f"gpus={list(gpus)} makes {found} processes, one each, but processes={processes}")
    return processes


def _visible(gpus: tuple[int, ...]) -> str:
    """The GPUs as ``CUDA_VISIBLE_DEVICES``, which may itself already be in force and hold names."""
    now = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if now is None else now.split(",")
    return ",".join(str(gpu) if names is None else names[gpu].strip() for gpu in gpus)


def _common(threads: int, visible: str | None) -> dict[str, str]:
    common = {
        "OMP_NUM_THREADS": str(threads),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # no rank makes the store: it is here
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    return common if visible is None else {**common, "CUDA_VISIBLE_DEVICES": visible}


def _refuse_import() -> None:
    # multiprocessing's own mark of a process that still imports the script it belongs to.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "launch is called while a new process imports the script: put what starts processes under\n"
            "    if __name__ == '__main__':"
        )


def _context(start_method: str | None) -> BaseContext:
    known = multiprocessing.get_all_start_methods()
    if start_method is None:
        start_method = "forkserver" if sys.platform == "linux" and "forkserver" in known else "spawn"
    if start_method == "fork":
        raise ValueError("start_method='fork' would copy this process with its locks held: use 'forkserver' or 'spawn'")
    if start_method not in known:
        raise ValueError(f"start_method={start_method!r} is unknown here: use one of {sorted({*known} - {'fork'})}")
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        # Not the script, which is the default: it may start threads, and they do not survive a fork.
        context.set_forkserver_preload(["torch", _child.__name__])
    return context


def _pickled(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    main = sys.modules["__main__"]
    nameless = getattr(main, "__file__", None) is None and getattr(main, "__spec__", None) is None
    if getattr(fn, "__module__", None) == "__main__" and nameless:
        raise TypeError(
            f"launch cannot send {fn!r}: the new processes cannot import what a notebook, a prompt or `python -c` "
            "defines. Move the function into a file and import it from there"
        )
    try:
        return pickle.dumps((fn, args, kwargs), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise TypeError(_unsendable(fn, args, kwargs, error)) from error


def _unsendable(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> str:
    """The message about the first part that cannot be pickled."""
    parts = {f"argument {i}": each for i, each in enumerate(args)} | {f"argument {k!r}": v for k, v in kwargs.items()}
    for name, part in parts.items():
        try:
            pickle.dumps(part)
        except Exception as own:
            return f"launch cannot send {name}, of type {type(part).__name__}: {type(own).__name__}: {own}"
    return (
        f"launch cannot send the function {fn!r} ({type(error).__name__}: {error}): a lambda, or a function defined in "
        "another one, is known to this process only. Move it to the top of a module and pass what it needs as arguments"
    )


def _store() -> distributed.TCPStore:
    """The store where the ranks meet. It is here so that it outlives every rank, and only for this machine.

    The port is found by listening on it: nobody can take it in between.
    """
    listener = socket.create_server((_ADDRESS, 0))
    port = listener.getsockname()[1]
    # The store owns the descriptor from here on.
    return distributed.TCPStore(
        _ADDRESS, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def _start(context: BaseContext, rank: int, terms: _child.Terms, call: bytes) -> Child:
    ours, theirs = context.Pipe(duplex=True)
    process = context.Process(target=_child.main, args=(theirs, terms), name=f"rank-{rank}")  # type: ignore[attr-defined]
    try:
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Child(rank, process, ours, call)
