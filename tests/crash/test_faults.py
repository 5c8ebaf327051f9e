"""Whatever call fails or is the last: no completed checkpoint is lost, and the next start goes on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helios_fn.errors import CheckpointError

from .intercept import FAILURES, KILLS, Fault, Faulty, Intercepted, Killed
from .scenes import SCENES, Scene, open_store
from .tally import Finding, Outcome, Trial


class Fixed:
    """A scene prepared once, and copied for each attempt."""

    def __init__(self, scene: Scene, memory: Path) -> None:
        self.scene = scene
        self._model = memory / "model"
        self._memory = memory
        self._count = 0
        self._seen: set[object] = set()
        scene.prepare(self._model)
        files = Faulty()
        scene.act(self.fresh(), files)
        self.calls = files.calls

    def fresh(self) -> Path:
        self._count += 1
        root = self._memory / str(self._count)
        shutil.copytree(self._model, root, symlinks=True)
        return root

    def attempt(self, n: int, fault: Fault, *, again: bool) -> None:
        """Strike at the ``n``-th call and check the law; with ``again``, when the next process has done the same."""
        root = self.fresh()
        with Trial("kill at a call" if fault.raises is Killed else "failing call") as trial:
            returned = strike(self.scene, root, Faulty(n, fault), fault)
            trial.outcome = Outcome.UNHARMED if returned else Outcome.RECOVERED
            if again:
                with open_store(root / self.scene.below).lock():
                    pass
                self.scene.act(root, Faulty())
            self.check(root, returned=returned or again)
        shutil.rmtree(root)

    def check(self, root: Path, *, returned: bool) -> None:
        """The scene's law; in a folder that holds what another one held, only that the next process gets the lock."""
        found = (returned, content(root))
        if found in self._seen:
            open_store(root / self.scene.below).lock().release()
        else:
            self._seen.add(found)
            self.scene.check(root, self.scene.right(returned=returned))


def content(folder: Path) -> frozenset[tuple[str, bytes]]:
    """All paths below a folder, with the bytes of the files."""
    paths = [Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files)]
    return frozenset((str(path.relative_to(folder)), path.read_bytes() if path.is_file() else b"") for path in paths)


def strike(scene: Scene, root: Path, files: Intercepted, fault: Fault) -> bool:
    """Whether the act returned in spite of the fault; an error must be a `CheckpointError` that names the reason."""
    try:
        scene.act(root, files)
    except (Killed, KeyboardInterrupt):
        return False
    except CheckpointError as error:
        if fault.code is None or errno.errorcode[fault.code] not in str(error):
            raise Finding(Outcome.UNCLEAR, f"the reason is not named: {error}") from error
        return False
    except OSError as error:
        raise Finding(Outcome.UNCLEAR, f"an error that is no CheckpointError: {error!r}") from error
    if fault.raises is Killed:
        raise Finding(Outcome.UNCLEAR, "somebody caught the kill")
    return True


@pytest.fixture(params=SCENES, ids=str)
def fixed(request: pytest.FixtureRequest, memory: Path) -> Fixed:
    return Fixed(request.param, memory)


def test_after_a_kill_at_any_call_everything_completed_is_there(fixed: Fixed) -> None:
    """Before, in the middle of or after each call: the next start finds the last state or the new one, and saves."""
    for n in range(1, fixed.calls + 1):
        fixed.attempt(n, KILLS[n % len(KILLS)], again=n % 2 == 0)


def test_after_a_failure_of_any_call_everything_completed_is_there(fixed: Fixed) -> None:
    """Each call fails in one of the ways in turn: one `CheckpointError` that names the reason, and nothing is lost."""
    for n in range(1, fixed.calls + 1):
        fixed.attempt(n, FAILURES[n % len(FAILURES)], again=n % 2 == 0)


@pytest.mark.soak
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("fault", [*KILLS, *FAILURES], ids=str)
def test_every_fault_at_every_call_loses_nothing(fixed: Fixed, fault: Fault, again: bool) -> None:
    """All of them."""
    for n in range(1, fixed.calls + 1):
        fixed.attempt(n, fault, again=again)


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_a_process_that_is_really_killed_loses_nothing(scene: Scene, memory: Path) -> None:
    """The same with SIGKILL, at every fifth call, in a forked process that only touches files."""
    fixed = Fixed(scene, memory)
    for n in range(1, fixed.calls + 1, 5):
        root = fixed.fresh()
        with Trial("SIGKILL at a call"):
            child = os.fork()
            if child == 0:
                try:
                    scene.act(root, Suicidal(n))
                finally:
                    os._exit(0)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status)
            assert os.WTERMSIG(status) == signal.SIGKILL
            fixed.check(root, returned=False)
        shutil.rmtree(root)


class Suicidal(Faulty):
    """Ends its own process where another would only pretend to."""

    def _strike(self, name: str, effect: Callable[..., Any], *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
