"""A process's place is a function of its environment variables."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn.distributed.environment import NAMES, Place, is_launched, place, variables


@st.composite
def places(draw) -> Place:
    """A rank somewhere among machines of any sizes."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    machine = draw(st.integers(0, len(sizes) - 1))
    local = draw(st.integers(0, sizes[machine] - 1))
    return Place(sum(sizes[:machine]) + local, sum(sizes), local, sizes[machine])


FIRST = variables(Place(0, 2, 0, 2), "host", 29500)


@settings(deadline=None, max_examples=50)
@given(places(), st.integers(1, 65535))
def test_a_place_survives_the_way_through_the_variables(here, port):
    """``place(variables(p)) == p`` for every place that there can be; other variables do not matter."""
    environ = {**variables(here, "host", port), "PATH": "/bin", "RANKS": "many"}
    assert place(environ) == here
    assert is_launched(environ)


@pytest.mark.parametrize("environ", [{}, {"MASTER_ADDR": "host", "MASTER_PORT": "1"}, dict.fromkeys(NAMES, "")])
def test_without_a_number_a_process_is_alone(environ):
    """An address alone says nothing, and an empty variable is none."""
    assert place(environ) == Place(0, 1, 0, 1)
    assert not is_launched(environ)


def test_the_default_is_the_environment_of_this_process(monkeypatch):
    """Without an argument, os.environ is read at the call."""
    assert place() == Place()
    for name, value in FIRST.items():
        monkeypatch.setenv(name, value)
    assert place() == Place(0, 2, 0, 2)


@settings(deadline=None, max_examples=60)
@given(st.sets(st.sampled_from(NAMES), min_size=1, max_size=len(NAMES) - 1))
def test_a_part_of_the_variables_is_an_error_that_names_the_missing_ones(missing):
    """Any part that holds a number is refused, with every missing name in the message."""
    environ = {name: value for name, value in FIRST.items() if name not in missing}
    if not is_launched(environ):
        return
    with pytest.raises(ValueError, match="only in part") as caught:
        place(environ)
    text, _, rest = str(caught.value).partition("not set")
    assert all(name in text for name in missing)
    assert all(f"{name}=" in rest for name in environ)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"RANK": "2"}, "RANK=2 with WORLD_SIZE=2"),
        ({"RANK": "-1"}, "RANK=-1 with WORLD_SIZE=2"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 with LOCAL_WORLD_SIZE=2"),
        ({"WORLD_SIZE": "0"}, "RANK=0 with WORLD_SIZE=0"),
        ({"RANK": "one"}, "RANK='one' is not an integer"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT='http' is not an integer"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0 is not a port"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536 is not a port"),
        ({"LOCAL_WORLD_SIZE": "3"}, "contradict each other"),
        ({"LOCAL_RANK": "1"}, "contradict each other"),
        ({"RANK": "1"}, "contradict each other"),
    ],
)
def test_contradictions_are_errors_that_name_the_variables(changes, says):
    """Numbers out of range, and machines that would not fit among the ranks."""
    with pytest.raises(ValueError, match=says):
        place({**FIRST, **changes})
