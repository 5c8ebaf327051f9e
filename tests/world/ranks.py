"""What the launched processes of these tests do. A module of its own, which they can import."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import torch
from torch import distributed

from helios_fn.distributed import launch, once_per_node
from helios_fn.distributed.environment import place


def rank() -> int:
    return int(os.environ["RANK"])


def whereabouts(*args, **kwargs):
    return tuple(place()), args, kwargs


def tensors():
    shared = torch.full((2, 3), float(rank()))
    return {"t": shared, "view": shared[1:], "p": torch.nn.Parameter(torch.ones(2)), "none": None}


def all_reduced():
    distributed.init_process_group("gloo")
    total = torch.tensor([float(rank() + 1)])
    distributed.all_reduce(total)
    return total.item()


def threads():
    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def settings():
    import random

    import numpy as np

    return os.environ.get("TOLD"), os.environ.get("CUDA_VISIBLE_DEVICES"), random.random(), np.random.rand()


def nested(processes=None):
    return launch(whereabouts, "inner", processes=processes)


def unsendable():
    return threading.Lock() if rank() == 1 else rank()


class Misfit:
    """A value that leaves its process, but does not arrive."""

    def __reduce__(self):
        return (int, ("not a number",))


def misfit():
    return Misfit()


class Sad(RuntimeError):
    """An error that pickle could not bring over."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def faulty(how, which=1):
    """Rank ``which`` fails; the others wait for it in a collective."""
    distributed.init_process_group("gloo")
    if rank() == which:
        fail(how)
    distributed.all_reduce(torch.ones(1))
    distributed.all_reduce(torch.ones(1))
    return rank()


def fail(how):
    if how == "raise":
        raise Sad("this", "that")
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(0)
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)


def one_returns_early():
    from helios_fn.errors import PeerLost

    if rank() == 1:
        return "early"
    raise PeerLost("rank 1 is gone")


def deaf(folder):
    """One rank fails, another one does not listen to SIGTERM."""
    if rank() == 0:
        while not os.path.exists(f"{folder}/1"):
            time.sleep(0.01)
        raise ValueError("enough")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    linger(folder)


def linger(folder):
    with open(f"{folder}/part-{rank()}", "w") as file:
        file.write(str(os.getpid()))
    os.replace(file.name, f"{folder}/{rank()}")
    time.sleep(600)


def obedient(folder):
    """Stops when it is told so, as a run does."""
    told = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: told.append(number))
    open(f"{folder}/{rank()}", "w").close()
    while not told:
        time.sleep(0.01)
    return signal.Signals(told[0]).name


def hold_on_at_exit():
    threading.Thread(target=time.sleep, args=(600,)).start()
    return rank()


def prepared(folder, how="well"):
    distributed.init_process_group("gloo")
    for turn in range(2):
        once_per_node(prepare, f"{folder}/{turn}", how=how)
    return sorted(os.listdir(folder))


def prepare(path, how):
    if how == "badly":
        raise OSError("no space left")
    time.sleep(0.3)
    with open(path, "x") as file:  # a second writer would fail
        file.write(str(rank()))


def never_prepared(folder):
    distributed.init_process_group("gloo")
    if rank() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    once_per_node(prepare, folder, silence=0.5)


def not_connected():
    once_per_node(print)
