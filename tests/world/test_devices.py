"""The devices of a process are a function of what was asked for, what there is, and its place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn.distributed import choose_devices
from helios_fn.distributed.environment import Place, variables

CPU = (torch.device("cpu"),)


def cuda(*indices: int) -> tuple[torch.device, ...]:
    return tuple(torch.device("cuda", index) for index in indices)


def at(local_rank: int, local_size: int) -> dict[str, str]:
    return variables(Place(local_rank, local_size, local_rank, local_size), "host", 29500)


@pytest.mark.parametrize(
    ("use_cpu", "gpus", "available", "environ", "expected"),
    [
        (False, None, 0, {}, CPU),
        (False, None, 1, {}, cuda(0)),
        (False, None, 3, {}, cuda(0, 1, 2)),
        (True, None, 3, {}, CPU),
        (True, None, 0, {}, CPU),
        (False, [1], 3, {}, cuda(1)),
        (False, (2, 0), 3, {}, cuda(2, 0)),
        (False, None, 3, at(1, 2), cuda(1)),
        (False, [2, 0], 3, at(1, 2), cuda(0)),
        (False, [2, 0], 3, at(0, 1), cuda(2)),
        (False, None, 0, at(1, 2), CPU),
        (True, None, 1, at(1, 2), CPU),
    ],
)
def test_the_rules(use_cpu, gpus, available, environ, expected):
    """CPU if asked for; the GPUs that are named; all that there are; else the CPU. One for a launched process."""
    assert choose_devices(use_cpu=use_cpu, gpus=gpus, available=available, environ=environ) == expected


@pytest.mark.parametrize(
    ("keywords", "error", "says"),
    [
        ({"use_cpu": True, "gpus": [0]}, ValueError, r"use_cpu=True contradicts gpus=\[0\]"),
        ({"gpus": []}, ValueError, "gpus is empty"),
        ({"gpus": [1, 0, 1]}, ValueError, "names 1 more than once"),
        ({"gpus": [0, 2]}, ValueError, r"names 2, but there are 2 GPU\(s\): they are numbered 0..1"),
        ({"gpus": [-1]}, ValueError, "names -1"),
        ({"gpus": [0], "available": 0}, ValueError, "pass use_cpu=True"),
        ({"gpus": "01"}, TypeError, "list of integers"),
        ({"gpus": 1}, TypeError, "list of integers"),
        ({"gpus": [True]}, TypeError, "must hold integers, not True"),
        ({"gpus": ["cuda:0"]}, TypeError, "must hold integers, not 'cuda:0'"),
        ({"environ": at(0, 3)}, ValueError, r"3 processes run on this machine .* 2 GPU\(s\) \(0, 1\)"),
        ({"environ": at(1, 2), "gpus": [1]}, ValueError, r"2 processes run on this machine .* 1 GPU\(s\) \(1\)"),
        ({"environ": {"RANK": "0"}}, ValueError, "only in part"),
    ],
)
def test_what_contradicts_is_an_error_that_says_what_to_do(keywords, error, says):
    """No guess is made."""
    with pytest.raises(error, match=says):
        choose_devices(**{"available": 2, "environ": {}, **keywords})


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_the_processes_of_a_machine_have_different_devices_among_the_named_ones(data):
    """With G GPUs named, any n <= G launched processes get the first n of them, in order."""
    available = data.draw(st.integers(1, 6))
    gpus = data.draw(st.lists(st.integers(0, available - 1), unique=True, min_size=1))
    size = data.draw(st.integers(1, len(gpus)))
    found = [choose_devices(gpus=gpus, available=available, environ=at(rank, size)) for rank in range(size)]
    assert found == [cuda(gpu) for gpu in gpus[:size]]


def test_by_default_it_asks_cuda_and_the_environment(monkeypatch):
    """Without CUDA and alone, that is the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_devices() == cuda(0, 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_devices() == CPU
