"""What the launched processes of these tests do. A module of its own, which they can import."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from datetime import timedelta

import torch
from torch import distributed

from helios_fn.distributed import launch, once, once_per_node
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
    """One rank fails, another one does not listen to SIGTERM, nor does a process of its own."""
    if rank() == 0:
        while not os.path.exists(f"{folder}/1"):
            time.sleep(0.01)
        raise ValueError("enough")
    both_deaf(folder, helper=os.fork())


def both_deaf(folder, helper=None):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if helper != 0:
        note(folder, "" if helper is None else f" {helper}")
    time.sleep(600)


def linger(folder):
    note(folder)
    time.sleep(600)


def note(folder, more=""):
    """Leave the process id in a file that is there at once as a whole."""
    with open(f"{folder}/part-{rank()}", "w") as file:
        file.write(f"{os.getpid()}{more}")
    os.replace(file.name, f"{folder}/{rank()}")


def obedient(folder):
    """Stops when it is told so, as a run does."""
    told = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: told.append(number))
    note(folder)
    while not told:
        time.sleep(0.01)
    return signal.Signals(told[0]).name


def hold_on_at_exit():
    threading.Thread(target=time.sleep, args=(600,)).start()
    return rank()


def prepared(folder, how="well"):
    distributed.init_process_group("gloo")
    seen = []
    for turn in range(2):
        once_per_node(prepare, f"{folder}/{turn}", how=how)
        seen.append(sorted(os.listdir(folder)))
        distributed.barrier()
    return seen


def prepare(path, how):
    if how == "badly":
        raise OSError("no space left")
    time.sleep(0.2)
    with open(path, "x") as file:  # a second writer would fail
        file.write(str(rank()))


def never_prepared(folder):
    distributed.init_process_group("gloo")
    if rank() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    once_per_node(prepare, f"{folder}/0", silence=0.3)


def slowly_prepared():
    """It takes longer than the silence that is allowed, and the collectives' timeout."""
    once._BEAT = 0.1
    distributed.init_process_group("gloo", timeout=timedelta(seconds=0.5))
    once_per_node(time.sleep, 1.5, silence=0.6)
    return rank()


def as_if_on_machines(folder, sizes):
    """Each rank believes to be on one of several machines, which have so many ranks."""
    machine, first = 0, 0
    while rank() >= first + sizes[machine]:
        first += sizes[machine]
        machine += 1
    os.environ.update(LOCAL_RANK=str(rank() - first), LOCAL_WORLD_SIZE=str(sizes[machine]))
    distributed.init_process_group("gloo")
    once_per_node(prepare, f"{folder}/{machine}", how="well")
    return sorted(os.listdir(folder))


def not_connected():
    once_per_node(print)
