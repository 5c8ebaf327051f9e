"""Processes started by `launch`: their places, what they return, and every way in which they can fail."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import pytest
import torch

from helios_fn.distributed import launch
from helios_fn.errors import LaunchFailed

from . import parents, ranks

HERE = Path(__file__).parents[2]
# The package has a function of the same name.
launching = importlib.import_module("helios_fn.distributed.launch")


@contextlib.contextmanager
def process(target, *args):
    """A process of the fork server, and the end of a pipe whose other end it has as its first argument."""
    context = launching._context("forkserver")
    ours, theirs = context.Pipe()
    other = context.Process(target=target, args=(theirs, *args))
    other.start()
    theirs.close()
    try:
        yield other, ours
    finally:
        other.kill()
        other.join()
        ours.close()


def told(connection, seconds=60.0):
    assert connection.poll(seconds), "it says nothing"
    return connection.recv()


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


def wait_until(condition, seconds=60.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it does not happen"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, or does within a moment: what is killed takes its time to die."""
    deadline = time.monotonic() + 10
    while not (gone := _is_gone(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return gone


def _is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"  # an orphan whose new parent has not looked yet


def failure(fn, *args, **keywords) -> LaunchFailed:
    with pytest.raises(LaunchFailed) as caught:
        launch(fn, *args, timeout=60, **keywords)
    return caught.value


# Values.


def test_each_rank_has_its_place_and_its_value_comes_back_in_order():
    """Rank r of n is told so; arguments arrive; the list is in the order of ranks."""
    values = launch(ranks.whereabouts, 1, processes=3, word="x")
    assert values == [((r, 3, r, 3), (1,), {"word": "x"}) for r in range(3)]


def test_one_process_is_a_new_one_with_a_place_too():
    """A world of one is not special: the environment is the same."""
    assert launch(ranks.whereabouts, processes=1) == [((0, 1, 0, 1), (), {})]


def test_tensors_outlive_the_process_that_made_them():
    """Values, views and parameters are whole after the end of their process."""
    for r, value in enumerate(launch(ranks.tensors, processes=2)):
        assert torch.equal(value["t"], torch.full((2, 3), float(r)))
        assert torch.equal(value["view"], torch.full((1, 3), float(r)))
        assert isinstance(value["p"], torch.nn.Parameter)
        assert value["none"] is None


def test_the_ranks_find_each_other():
    """The process group of torch comes up from the environment alone and reduces."""
    assert launch(ranks.all_reduced, processes=3) == [6.0] * 3


def test_the_spawn_method_does_the_same():
    """Where there is no fork server, a fresh interpreter gives the same values."""
    assert launch(ranks.all_reduced, processes=1, start_method="spawn") == [1.0]


@pytest.mark.parametrize(("processes", "threads"), [(1, 1), (2, 1), (1, 2)])
def test_the_number_of_threads_does_not_depend_on_the_number_of_processes(processes, threads):
    """One thread unless said otherwise, for torch and for what reads OMP_NUM_THREADS."""
    asked = {} if threads == 1 else {"threads": threads}
    assert launch(ranks.threads, processes=processes, **asked) == [(threads, str(threads))] * processes


def test_processes_see_the_present_environment_and_have_random_states_of_their_own(monkeypatch):
    """What is set after the fork server has started is there; no two processes draw the same by accident."""
    launch(ranks.settings, processes=1)
    monkeypatch.setenv("TOLD", "late")
    values = launch(ranks.settings, processes=2)
    assert [told for told, *_ in values] == ["late", "late"]
    assert len({draw for *_, draw in values}) == len({draw for *_, draw, _ in values}) == 2


def test_gpus_are_what_the_processes_see(monkeypatch):
    """One process for each of ``gpus``, which become the only visible ones, through names already in force."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-5,6")
    assert [seen for _, seen, *_ in launch(ranks.settings, gpus=[2, 1])] == ["6,GPU-5"] * 2


def test_within_a_launched_process_the_function_is_called_in_place():
    """So a script runs unchanged under torchrun: the list then holds this process's own value."""
    values = launch(ranks.nested, processes=2)
    assert values == [[((r, 2, r, 2), ("inner",), {})] for r in range(2)]
    assert launch(ranks.nested, 2, processes=2) == values


def test_another_number_of_processes_than_there_are_is_refused():
    """Within a launched process, ``processes`` must be what is there."""
    assert "3 processes were asked for, but this is already one of 2" in str(failure(ranks.nested, 3, processes=2))


# Bad input: nothing is started.


def local_function():
    def inner():
        pass

    return inner


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "says"),
    [
        ((lambda: 1,), {}, TypeError, "Move it to the top of a module"),
        ((local_function(),), {}, TypeError, "Move it to the top of a module"),
        ((ranks.whereabouts, 1, (i for i in ())), {}, TypeError, "argument 1, of type generator"),
        ((ranks.whereabouts,), {"word": lambda: 1}, TypeError, "argument 'word'"),
        ((ranks.whereabouts,), {"processes": 0}, ValueError, "processes must be at least 1"),
        ((ranks.whereabouts,), {"processes": 2.0}, TypeError, "processes must be an integer"),
        ((ranks.whereabouts,), {"threads": 0}, ValueError, "threads must be at least 1"),
        ((ranks.whereabouts,), {"timeout": 0}, ValueError, "timeout must be a positive"),
        ((ranks.whereabouts,), {"grace": -1}, ValueError, "grace must be"),
        ((ranks.whereabouts,), {"start_method": "fork"}, ValueError, "locks held"),
        ((ranks.whereabouts,), {"start_method": "magic"}, ValueError, "unknown"),
        ((ranks.whereabouts,), {"gpus": [7]}, ValueError, "names 7"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_started(monkeypatch, arguments, keywords, error, says):
    """The message says which argument and what to do."""
    started = []
    monkeypatch.setattr(launching, "_start", lambda *_: started.append(1))
    with pytest.raises(error, match=says):
        launch(*arguments, **keywords)
    assert not started


# Failures.


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raise", "rank 1 of 3 raised Sad: this and that"),
        ("sys.exit", "rank 1 of 3 called sys.exit(3)"),
        ("os._exit", "rank 1 of 3 left with exit code 0"),
        ("SIGKILL", "rank 1 of 3 was killed by SIGKILL"),
    ],
)
def test_the_first_line_names_the_rank_that_failed_and_how(how, says):
    """The others, who only lost a peer, come after it; no process is left."""
    error = failure(ranks.faulty, how, processes=3)
    assert str(error).startswith(says)
    assert error.rank == 1
    assert set(error.failures) == {0, 1, 2}
    assert "\n  rank 0 raised" in str(error)
    if how == "raise":
        assert 'raise Sad("this", "that")' in str(error)
        assert "_child.py" not in str(error)


@pytest.mark.soak
@pytest.mark.parametrize("how", ["raise", "sys.exit", "os._exit", "SIGKILL"])
def test_the_cause_is_told_from_its_consequences_every_time(how):
    """Whichever rank is heard first: the peers of a killed rank may report before its end is seen."""
    assert {failure(ranks.faulty, how, processes=4).rank for _ in range(25)} == {1}


def test_if_all_only_lost_a_peer_the_message_shows_who_was_first_and_who_had_returned():
    """An early return is no failure of that rank, but it can be seen."""
    error = failure(ranks.one_returns_early, processes=3)
    assert error.rank in (0, 2)
    assert "rank 1 returned its value" in str(error)
    assert set(error.failures) == {0, 2}


def test_a_value_that_cannot_be_sent_is_an_error_that_names_rank_and_type():
    """On the way out ..."""
    assert "rank 1 of 2 returned a value of type _thread.lock, which cannot be sent" in str(
        failure(ranks.unsendable, processes=2)
    )


def test_a_value_that_cannot_be_read_is_an_error_that_names_the_rank():
    """... and on the way in."""
    assert "rank 0 of 1 returned a value that cannot be read here (ValueError" in str(
        failure(ranks.misfit, processes=1)
    )


def test_a_rank_that_does_not_end_is_ended(tmp_path):
    """After the grace period comes SIGTERM, then SIGKILL, and the error says where the rank was.

    The processes that it has started are ended with it.
    """
    error = failure(ranks.deaf, str(tmp_path), processes=2, grace=0.2)
    assert str(error).startswith("rank 0 of 2 raised ValueError: enough")
    assert "rank 1 was still at work 0.2 s after the first failure, and was ended" in str(error)
    assert "time.sleep(600)" in error.failures[1]
    assert all(is_gone(int(pid)) for pid in (tmp_path / "1").read_text().split())


def test_the_timeout_ends_all_and_says_where_they_were(tmp_path):
    """A hang ends in an error with the line at which each rank was."""
    with pytest.raises(LaunchFailed, match=r"rank \d of 2 had not returned after 1 s \(timeout\)") as caught:
        launch(ranks.linger, str(tmp_path), processes=2, timeout=1)
    assert "time.sleep(600)" in str(caught.value)
    assert all(is_gone(int((tmp_path / str(rank)).read_text())) for rank in range(2))


def test_a_value_counts_even_if_its_process_does_not_end():
    """A thread that a rank leaves behind costs the grace period, not the result."""
    assert launch(ranks.hold_on_at_exit, processes=1, grace=0.1) == [0]


# Scripts.


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    """No chain of processes, no hang: an error that shows the line that is missing."""
    script = written(tmp_path, "script.py", "from helios_fn.distributed import launch\nlaunch(print, processes=2)\n")
    with process(parents.run_script, script) as (_, connection):
        error = told(connection)
    assert error.startswith("LaunchFailed: rank")
    assert "if __name__ == '__main__':" in error


def test_a_function_that_no_file_holds_is_refused(monkeypatch):
    """A prompt or a notebook cannot be imported by others."""
    prompt = types.ModuleType("__main__")
    exec("def here(): pass", vars(prompt))
    monkeypatch.setitem(sys.modules, "__main__", prompt)
    with pytest.raises(TypeError, match="Move the function into a file"):
        launch(prompt.here, processes=2)


SCRIPT = """
    from pathlib import Path

    import torch
    from torch import distributed
    from helios_fn.distributed import launch

    def main():
        distributed.init_process_group("gloo")
        total = torch.tensor([float(distributed.get_rank() + 1)])
        distributed.all_reduce(total)
        distributed.destroy_process_group()
        return total.item()

    if __name__ == "__main__":
        values = launch(main, processes=2)
        with open(Path(__file__).with_name("totals"), "a") as file:
            file.write("".join(f"{value}\\n" for value in values))
"""


@pytest.mark.soak  # the examples are started by torchrun in the ordinary suite
def test_the_same_script_runs_alone_and_under_torchrun(tmp_path):
    """Alone it starts two processes; under torchrun, each of the two calls the function itself."""
    script, totals = written(tmp_path, "script.py", SCRIPT), tmp_path / "totals"
    with process(parents.run_script, script) as (_, connection):
        assert told(connection) == "done"
    assert totals.read_text() == "3.0\n3.0\n"
    totals.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    environ = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    assert totals.read_text() == "3.0\n3.0\n"


ENDING = """
import atexit, os
import torch
import helios_fn as hf

atexit.register(lambda: print(len(os.listdir("/proc/self/task"))))  # the first that is registered is called last
hf.distributed.connect().sum_([torch.ones(3)])
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_of_the_connections_outlives_the_program():
    """Else what it holds last is freed while the interpreter ends, and the process aborts, now and then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ENDING],
            env={**os.environ, **size, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for each in started:
        said, _ = each.communicate(timeout=60)
        while_connected, at_the_end = map(int, said.split())
        assert while_connected > at_the_end == 1
        assert each.returncode == 0


# The end of the process that launches.


def come_up(folder: Path) -> list[int]:
    """The process ids of both ranks, when they are at work."""
    files = [folder / str(rank) for rank in range(2)]
    wait_until(lambda: all(file.exists() for file in files))
    return [int(file.read_text()) for file in files]


def test_if_the_launching_process_is_killed_the_ranks_end(tmp_path):
    """By SIGKILL, which it cannot pass on."""
    with process(parents.launch_two, "linger", str(tmp_path)) as (parent, _):
        pids = come_up(tmp_path)
        parent.kill()
        wait_until(lambda: all(map(is_gone, pids)))


def test_if_the_launching_process_is_killed_even_a_deaf_rank_ends(tmp_path):
    """It has the grace period, and is then killed."""
    with process(parents.launch_two, "both_deaf", str(tmp_path), 0.2) as (parent, _):
        pids = come_up(tmp_path)
        parent.kill()
        wait_until(lambda: all(map(is_gone, pids)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_ranks_that_stop_in_order_give_their_values(tmp_path, number):
    """As with a run that is alone: the first signal asks it to stop, and it returns."""
    with process(parents.launch_two, "obedient", str(tmp_path)) as (parent, connection):
        come_up(tmp_path)
        os.kill(parent.pid, number)
        assert told(connection) == [number.name] * 2


def test_a_signal_that_ends_the_ranks_ends_the_launching_process_alike(tmp_path):
    """After they are gone, it does what it would have done at once."""
    with process(parents.launch_two, "linger", str(tmp_path)) as (parent, _):
        pids = come_up(tmp_path)
        parent.terminate()
        parent.join(60)
        assert all(map(is_gone, pids))
        assert parent.exitcode == -signal.SIGTERM


def test_a_second_interrupt_kills_ranks_that_do_not_listen(tmp_path):
    """The first one waits for them; after the second one comes KeyboardInterrupt."""
    with process(parents.launch_two, "both_deaf", str(tmp_path)) as (parent, connection):
        pids = come_up(tmp_path)
        os.kill(parent.pid, signal.SIGINT)
        assert not connection.poll(0.5)
        os.kill(parent.pid, signal.SIGINT)
        assert told(connection) == "KeyboardInterrupt"
        assert all(map(is_gone, pids))
