"""Whatever call fails or is the last: no completed checkpoint is lost, and the next start goes on."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from helios_fn.errors import CheckpointError

from .intercept import FAILURES, KILLS, Fault, Faulty, Intercepted, Killed
from .scenes import SCENES, Scene
from .tally import Finding, Outcome, Trial

ALL = [*KILLS, *FAILURES]


class Fixed:
    """A scene prepared once, and copied for each attempt."""

    def __init__(self, scene: Scene, memory: Path) -> None:
        self.scene = scene
        self._model = memory / "model"
        self._memory = memory
        self._count = 0
        scene.prepare(self._model)
        files = Faulty()
        scene.act(self.fresh(), files)
        self.calls = files.calls

    def fresh(self) -> Path:
        self._count += 1
        root = self._memory / str(self._count)
        shutil.copytree(self._model, root, symlinks=True)
        return root

    def attempt(self, n: int, fault: Fault) -> None:
        """Strike at the ``n``-th call, check the law, forget the root."""
        root = self.fresh()
        kind = "kill at a call" if fault.raises is Killed else "failing call"
        with Trial(kind) as trial:
            files = Faulty(n, fault)
            returned = strike(self.scene, root, files, fault)
            trial.outcome = Outcome.UNHARMED if returned else Outcome.RECOVERED
            self.scene.check(root, self.scene.right(returned=returned))
        shutil.rmtree(root)


def strike(scene: Scene, root: Path, files: Intercepted, fault: Fault) -> bool:
    """Whether the act returned in spite of the fault; an error must be a `CheckpointError` that names the reason."""
    try:
        scene.act(root, files)
    except (Killed, KeyboardInterrupt) as error:
        assert type(error) is fault.raises
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
        fixed.attempt(n, KILLS[n % len(KILLS)])


def test_after_a_failure_of_any_call_everything_completed_is_there(fixed: Fixed) -> None:
    """Each call fails in one of the ways in turn: one `CheckpointError` that names the reason, and nothing is lost."""
    for n in range(1, fixed.calls + 1):
        fixed.attempt(n, FAILURES[n % len(FAILURES)])


@pytest.mark.soak
@pytest.mark.parametrize("fault", ALL, ids=str)
def test_every_fault_at_every_call_loses_nothing(fixed: Fixed, fault: Fault) -> None:
    """All of them."""
    for n in range(1, fixed.calls + 1):
        fixed.attempt(n, fault)
