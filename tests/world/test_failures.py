"""One of several processes comes to harm: the others say which and when, and the run goes on from what is on disk.

Every test ends by itself: `launch` has a timeout, and other processes are given a limit. Nothing is asserted on times.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from helios_fn.checkpoint import Store
from helios_fn.distributed import launch
from helios_fn.distributed.faults import Note, Notes
from helios_fn.errors import LaunchFailed

from . import troubled
from .troubled import AT

HERE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def uninterrupted(pool, tmp_path_factory):
    """What the run of one process gives that nothing happens to."""
    (found,) = pool(troubled.train, str(tmp_path_factory.mktemp("whole")), processes=1)
    assert found[1:] == ("TOTAL", 9)
    return found


def check_goes_on(pool, root, uninterrupted, processes=2):
    """There is a valid newest checkpoint, and two processes come from there to the end of the uninterrupted run."""
    store = Store(root, "run")
    assert store.newest() is not None
    assert not store.damaged()
    assert pool(troubled.train, str(root), processes=processes) == [uninterrupted] * processes


def failures(root, how, who, grace=30.0) -> tuple[LaunchFailed, dict[int, str]]:
    with pytest.raises(LaunchFailed) as caught:
        launch(troubled.train, str(root), how, who, processes=3, timeout=90, grace=grace)
    return caught.value, caught.value.failures


HARMS = [
    ("SIGKILL", "was killed by SIGKILL", "rank {who} does not answer: killed, frozen, cut off or still busy"),
    ("os._exit", "left with exit code 7", "rank {who} does not answer: killed, frozen, cut off or still busy"),
    ("raise", "ValueError: boom", "rank {who} failed in what is due after iteration 5: ValueError: boom"),
    ("memory", "MemoryError", "rank {who} failed in what is due after iteration 5: MemoryError"),
]


# The others meet the lost rank in the sums of the next iteration, or before it in the stop test: the word that was
# begun one iteration earlier may still be on its way when that rank can no longer send its part.
WHERE = re.compile(r"\bin iteration 6\b|the stop test after iteration 5\b")


@pytest.mark.parametrize(
    ("how", "own", "others", "who"),
    [
        pytest.param(*harm, who, marks=[] if (harm[0], who) in {("SIGKILL", 0), ("raise", 1)} else pytest.mark.soak)
        for harm in HARMS
        for who in (0, 1)
    ],
)
def test_a_rank_that_fails_or_dies_is_named_by_all(pool, tmp_path, uninterrupted, how, own, others, who):
    """The error of the launch begins with it; the others name it and the iteration; nothing more than that is lost."""
    error, texts = failures(tmp_path, how, who)
    assert error.rank == who
    assert str(error).startswith(f"rank {who} of 3 ")
    assert own in str(error).split("\n")[0]
    for rank in {0, 1, 2} - {who}:
        assert others.format(who=who) in texts[rank], texts[rank]
        assert WHERE.search(texts[rank]), texts[rank]
    check_goes_on(pool, tmp_path, uninterrupted)


@pytest.mark.parametrize("who", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_a_frozen_rank_is_named_when_the_others_have_waited_long_enough(pool, tmp_path, uninterrupted, who):
    """A stopped process keeps its connections, so only the timeout can tell."""
    error, texts = failures(tmp_path, "SIGSTOP", who, grace=2.5)
    assert "was still at work 2.5 s after the first failure, and was ended" in texts[who]
    for rank in {0, 1, 2} - {who}:
        assert f"rank {who} does not answer: killed, frozen, cut off or still busy" in texts[rank]
        assert WHERE.search(texts[rank]), texts[rank]
    assert error.rank != who
    check_goes_on(pool, tmp_path, uninterrupted)


@pytest.mark.parametrize("who", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_a_rank_that_leaves_early_is_named_and_the_others_do_not_wait(pool, tmp_path, uninterrupted, who):
    """Breaking out of `iterate` on one rank alone is a fault of the program; its own value comes all the same."""
    _, texts = failures(tmp_path, "break", who)
    assert sorted(texts) == sorted({0, 1, 2} - {who})
    for text in texts.values():
        assert f"rank {who} left the run after iteration {AT}" in text
        assert "iteration 6" in text
    check_goes_on(pool, tmp_path, uninterrupted)


def test_a_process_that_can_start_no_thread_still_leaves(monkeypatch):
    """Out of memory, a note cannot be left; that must not replace the error that is on its way."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    Notes(object(), 0, 2, grace=0.1).tell(Note("failed", "out of memory"))


def environment(**more: object) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {
        **kept,
        "PYTHONPATH": str(HERE),
        "OMP_NUM_THREADS": "1",
        **{name: str(value) for name, value in more.items()},
    }


@pytest.mark.soak
@pytest.mark.parametrize("who", [0, 1])
def test_torchrun_starts_a_job_again_that_goes_on_where_it_was(tmp_path, uninterrupted, who):
    """After a SIGKILL all ranks are new ones, and the final state is that of the uninterrupted run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    command += ["-m", "tests.world.troubled", str(tmp_path), "SIGKILL", str(who)]
    done = subprocess.run(
        command, cwd=HERE, env=environment(), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ends = [line for line in done.stdout.splitlines() if line.endswith("TOTAL 9")]
    assert ends == [" ".join(map(str, uninterrupted))] * 2
    assert "SIGKILL" in done.stderr or "exitcode: -9" in done.stderr or "exitcode  : -9" in done.stderr


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


@pytest.fixture
def two_hosts():
    """Two network namespaces and a cable between them: their names, and the name of each end."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` to make network namespaces with")
    tag = uuid.uuid4().hex[:6]
    names, ends = [f"hf{tag}{side}" for side in "ab"], [f"v{tag}{side}" for side in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            ip("-n", name, "addr", "add", f"10.111.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names, ends
    finally:
        for name in names:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


def on_host(name: str, command: list[str], **more: object) -> subprocess.Popen:
    """A program in a network namespace."""
    return subprocess.Popen(
        ["ip", "netns", "exec", name, *command],
        cwd=HERE,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.soak
def test_torchrun_on_two_hosts_gives_the_bits_of_one_process(tmp_path, uninterrupted, two_hosts):
    """The same program, started once on each machine. Only rank 0's machine needs the folder."""
    processes = []
    try:
        for rank, (name, end) in enumerate(zip(*two_hosts, strict=True)):
            torchrun = ["torch.distributed.run", "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"]
            torchrun += ["--master-addr=10.111.0.1", "--master-port=29512", "-m", "tests.world.troubled"]
            command = [sys.executable, "-m", *torchrun, str(tmp_path / str(rank)), "nothing", "0"]
            processes.append(on_host(name, command, GLOO_SOCKET_IFNAME=end))
        told = [each.communicate(timeout=150)[0] for each in processes]
    finally:
        for each in processes:
            each.kill()
            each.wait()
    for text in told:
        assert " ".join(map(str, uninterrupted)) in text.splitlines(), text
    assert not (tmp_path / "1").exists()


@pytest.mark.soak
@pytest.mark.parametrize("cut", ["down", "lost"])
def test_a_cut_between_two_hosts_ends_both(pool, tmp_path, uninterrupted, two_hosts, cut):
    """Whether the link goes down or silently loses what is sent: both ends say so and leave, and the run goes on
    from one checkpoint. Rank 1's host cannot reach the store either."""
    names, ends = two_hosts
    processes = []
    try:
        for rank, (name, end) in enumerate(zip(names, ends, strict=True)):
            place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
            meet = {"MASTER_ADDR": "10.111.0.1", "MASTER_PORT": 29511, "GLOO_SOCKET_IFNAME": end}
            command = [sys.executable, "-m", "tests.world.troubled", str(tmp_path), "wait", "0"]
            processes.append(on_host(name, command, **place, **meet))
        limit = time.monotonic() + 120
        while not all((tmp_path / f"waiting-{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < limit, "they do not come to the iteration"
            assert all(each.poll() is None for each in processes), [each.communicate()[0][-2000:] for each in processes]
            time.sleep(0.05)
        if cut == "down":
            ip("-n", names[1], "link", "set", ends[1], "down")
        else:
            lose = ["tc", "-n", names[1], "qdisc", "add", "dev", ends[1], "root", "netem", "loss", "100%"]
            if subprocess.run(lose, capture_output=True, check=False).returncode != 0:
                ip("-n", names[1], "link", "set", ends[1], "mtu", "68")  # no netem: what is larger is lost
                ip("-n", names[1], "neigh", "replace", "10.111.0.1", "lladdr", "02:00:00:00:00:09", "dev", ends[1])
                ip("-n", names[0], "neigh", "replace", "10.111.0.2", "lladdr", "02:00:00:00:00:09", "dev", ends[0])
        (tmp_path / "cut").touch()
        told = [each.communicate(timeout=troubled.TIMEOUT + 30)[0] for each in processes]
    finally:
        for each in processes:
            each.kill()
            each.wait()
    for rank, text in enumerate(told):
        assert processes[rank].returncode == 1, text
        assert f"PeerLost: rank {rank} of 2" in text, text
        assert "in iteration 6" in text
    assert "rank 1 does not answer" in told[0]
    assert "rank 0 does not answer" in told[1] or "the others cannot be reached" in told[1]
    check_goes_on(pool, tmp_path, uninterrupted)
