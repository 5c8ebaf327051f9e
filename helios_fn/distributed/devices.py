"""Which devices a process trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .environment import is_launched, place


def choose_devices(
    *,
    use_cpu: bool = False,
    gpus: Sequence[int] | None = None,
    environ: Mapping[str, str] | None = None,
    available: int | None = None,
) -> tuple[torch.device, ...]:
    """The devices for this process, by what was asked for, what there is, and its place among all.

    - ``use_cpu``: the CPU.
    - ``gpus``: exactly these, in this order.
    - Neither: all GPUs that there are, or the CPU where there are none.

    A process that torchrun or `launch` has started gets one device: of those GPUs, the one at its local rank.
    Alone, a process gets all of them; for more than one, start a process each (``launch(fn, gpus=gpus)``).

    Args:
        use_cpu: use the CPU even where there are GPUs.
        gpus: indices as CUDA counts them here, which is from 0 among those in ``CUDA_VISIBLE_DEVICES``.
        environ: the environment variables. Default: ``os.environ``.
        available: the number of GPUs. Default: as many as CUDA finds.

    Raises:
        TypeError: ``gpus`` holds something else than integers.
        ValueError: both ``use_cpu`` and ``gpus`` are given; ``gpus`` is empty, names one twice, or one that is not
            there; there are fewer GPUs than processes on this machine; or the environment contradicts itself.
    """
    here = place(environ)
    if use_cpu and gpus is not None:
        raise ValueError(f"use_cpu=True contradicts gpus={list(gpus)}: give one of them")
    if use_cpu:
        return (torch.device("cpu"),)
    count = torch.cuda.device_count() if available is None else available
    chosen = tuple(range(count)) if gpus is None else check_gpus(gpus, count)
    if not chosen:
        return (torch.device("cpu"),)
    if is_launched(environ):
        if here.local_size > len(chosen):
            what = f"{len(chosen)} GPU(s) ({', '.join(map(str, chosen))})"
            raise ValueError(
                f"{here.local_size} processes run on this machine (LOCAL_WORLD_SIZE), but there are only {what} for "
                "them: start fewer processes, name more GPUs, or pass use_cpu=True"
            )
        chosen = (chosen[here.local_rank],)
    return tuple(torch.device("cuda", index) for index in chosen)


def check_gpus(gpus: Sequence[int], available: int) -> tuple[int, ...]:
    """The indices as a tuple, all different and less than ``available``.

    Raises:
        TypeError, ValueError: as for `choose_devices`.
    """
    if isinstance(gpus, str) or not isinstance(gpus, Sequence):
        raise TypeError(f"gpus must be a list of integers such as [0, 1], not {gpus!r}")
    wrong = [gpu for gpu in gpus if isinstance(gpu, bool) or not isinstance(gpu, int)]
    if wrong:
        raise TypeError(f"gpus must hold integers, not {wrong[0]!r}")
    if not gpus:
        raise ValueError("gpus is empty: name at least one, leave it out to take what there is, or pass use_cpu=True")
    twice = sorted({gpu for gpu in gpus if gpus.count(gpu) > 1})
    if twice:
        raise ValueError(f"gpus={list(gpus)} names {twice[0]} more than once")
    absent = [gpu for gpu in gpus if not 0 <= gpu < available]
    if absent:
        there = f"they are numbered 0..{available - 1}" if available else "CUDA finds none here; pass use_cpu=True"
        raise ValueError(f"gpus={list(gpus)} names {absent[0]}, but there are {available} GPU(s): {there}")
    return tuple(gpus)
