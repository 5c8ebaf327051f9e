"""Law 9 and law 1 over real processes: SIGKILL at any instant loses nothing beyond the last checkpoint."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import helios_fn as hf
from helios_fn.checkpoint import Store, verify
from helios_fn.errors import CheckpointError

from ..jobs import Case
from ..strategies import cases, examples
from .processes import Kill, Leg, end_orphans, leg
from .tally import Finding, Outcome, Trial


def outcome(case: Case, root: Path, kills: list[Kill], last_workers: int = 0):
    try:
        for number, kill in enumerate(kills):
            leg(case, root, kill.workers, ambient=number + 1, kill=kill)
        return leg(case, root, last_workers, ambient=99, kill=None).last
    finally:
        end_orphans()


kills = st.builds(Kill, st.integers(1, 6), st.sampled_from([0.0, 0.001, 0.003, 0.01]), st.sampled_from([0, 0, 2]))


@settings(max_examples=examples(10))
@given(
    case=cases(max_iterations=6), kills=st.lists(kills, min_size=1, max_size=3), last_workers=st.sampled_from([0, 2])
)
def test_killed_processes_end_in_the_bits_of_one_left_alone(tmp_path_factory, case: Case, kills, last_workers):
    """Final state, reason and log rows are equal; loader workers may change between the processes."""
    root = tmp_path_factory.mktemp("runs")
    alone = outcome(case, root / "alone", [])
    killed = outcome(case, root / "killed", sorted(kills, key=lambda kill: kill.iteration), last_workers)
    assert killed == alone


def save_heavy(unit: str, total: int) -> Case:
    """Everything that could break a law, and a checkpoint after each iteration."""
    return Case(
        unit=unit,
        total=total,
        samples=12,
        augment="torch",
        dropout=True,
        batch_norm=True,
        ema=True,
        schedule=True,
        checkpoint_every=hf.Every(1, "iteration"),
        validate_every=hf.Every(1, "iteration"),
        early_stop=1000,
    )


class Chain:
    """A save-heavy run with workers, killed again and again, against the same run left alone."""

    def __init__(self, folder: Path, unit: str, total: int, seed: int) -> None:
        self.case = save_heavy(unit, total)
        self._folder = folder
        self._random = random.Random(seed)
        alone = leg(self.case, folder / "alone", 2, ambient=99, kill=None)
        self._right, self._window = alone.last, alone.save_window()

    def run(self, name: str, kills: int) -> int:
        """Kill until the run has come to its end, at most ``kills`` times; returns how often."""
        root, before = self._folder / name, -1
        for number in range(kills):
            try:
                with Trial("SIGKILL between saves") as trial:
                    found = leg(self.case, root, 2, ambient=number, kill=self._kill())
                    if not found.killed:
                        trial.outcome = Outcome.UNHARMED
                    elif self._check_root(root, found, before):
                        trial.kind = "SIGKILL inside a save"
            finally:
                end_orphans()
            if not found.killed:
                self._check_end(found)
                return number
            before = max(before, found.saved, found.start)
        self._check_end(leg(self.case, root, 2, ambient=99, kill=None))
        return kills

    def _kill(self) -> Kill:
        """Half of the instants lie inside a save, whose length was measured; the others anywhere."""
        event, width = self._random.choice([("validated", self._window), ("iteration", 5 * self._window)])
        return Kill(self._random.randint(1, 3), self._random.uniform(0, width), later=True, event=event)

    def _check_root(self, root: Path, found: Leg, before: int) -> bool:
        """All that bears a name is sound and nothing completed is gone; says whether a save was cut off."""
        store = Store(root, "run")
        for entry in store.entries():
            try:
                verify(entry.path)
            except CheckpointError as error:
                raise Finding(Outcome.CORRUPT, str(error)) from error
        if store.damaged():
            raise Finding(Outcome.CORRUPT, str(store.damaged()))
        newest = max((entry.iteration for entry in store.entries()), default=-1)
        if newest < max(before, found.saved) or (found.start >= 0 and found.start < before):
            raise Finding(Outcome.LOST, f"{newest} is the newest, started from {found.start}, saved were {before}")
        return any(path.name.startswith(".writing") for path in store.folder.iterdir())

    def _check_end(self, found: Leg) -> None:
        if found.last != self._right:
            raise Finding(Outcome.CORRUPT, "the run does not end in the bits of the one left alone")


def kill_until(kills: int, chain: Chain) -> None:
    """As many runs as it takes: on a busy machine one may come to its end before the next kill."""
    killed, number = 0, 0
    while killed < kills:
        killed += chain.run(f"killed-{number}", kills - killed)
        number += 1


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
def test_ten_kills_of_a_run_that_saves_all_the_time(tmp_path: Path, unit: str) -> None:
    """Half of them inside of a save: nothing that was saved is lost, and the run ends in the same bits."""
    kill_until(5, Chain(tmp_path, unit, total=12 if unit == "iteration" else 3, seed=1))


@pytest.mark.soak
def test_a_thousand_kills_of_a_run_that_saves_all_the_time(tmp_path: Path) -> None:
    """The same, until a thousand are dead."""
    kill_until(1000, Chain(tmp_path, "iteration", 30, seed=2))
