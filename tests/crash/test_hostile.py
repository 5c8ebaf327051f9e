"""Whatever a folder holds: the newest sound checkpoint, or one clear error; in little memory and time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helios_fn.checkpoint import Checkpoint, Store, header, verify
from helios_fn.errors import CheckpointError

from ..unit.test_checkpoint_damage import HOSTILE_MANIFESTS, HOSTILE_STATES, forge
from .bounds import bounded
from .hostile import ATTACKS, STRANGE, Attack
from .scenes import RUN, newest_value, open_store, save, value_of
from .tally import Finding, Outcome, Trial

SAYABLE = 4000  # characters of an error that somebody is to read


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with checkpoints 1, 2 and 3, and beside it a folder that no attack may reach."""
    base = tmp_path_factory.mktemp("model")
    for value in (1, 2, 3):
        save(open_store(base / "root"), value)
    other = Store(base / "outside" / "theirs", "other")
    save(other, 3, 8.0).rename(base / "outside" / "other")
    return base


class Victim:
    """A copy of the model."""

    def __init__(self, model: Path, memory: Path) -> None:
        self.base = memory / "base"
        shutil.copytree(model, self.base)
        self.outside = self.base / "outside"
        self.store = open_store(self.base / "root")
        self.folder = self.store.folder / f"{RUN}_epoch_0_iter_3"
        self.known = self.store.at(self.folder)


@pytest.fixture
def victim(model: Path, memory: Path) -> Victim:
    return Victim(model, memory)


def contents(folder: Path) -> dict[str, bytes]:
    """The regular files below a folder that is no link."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 30
    )
    return {str(path): path.read_bytes() for path in files}


def refused(call: Callable[[], object]) -> bool:
    """Whether a call is refused in the one way that is allowed."""
    try:
        call()
    except CheckpointError as error:
        if len(str(error)) > SAYABLE:
            raise Finding(Outcome.UNCLEAR, f"an error of {len(str(error))} characters") from None
        return True
    return False


def look(store: Store, folder: Path, known: Checkpoint) -> tuple[bool, float | None]:
    """Everything that reads: whether the folder itself is refused, and the value of the newest checkpoint."""
    refused(lambda: value_of(store, known))  # what it gives, it gives bit for bit
    itself = refused(lambda: verify(folder))
    refused(lambda: store.at(folder))
    store.entries()
    store.damaged()
    with store.lock():
        return itself, newest_value(store)


def check(victim: Victim, attack: Attack) -> None:
    """The right one is the newest, again when one looks again, and nothing outside has changed."""
    attack.do(victim.folder, victim.outside)
    before = contents(victim.outside)
    rejected = attack.newest != 3
    with Trial("hostile folder", Outcome.REJECTED if rejected else Outcome.UNHARMED):
        for _ in range(2):
            _, newest = bounded(lambda: look(victim.store, victim.folder, victim.known))
            if newest != attack.newest:
                raise Finding(Outcome.LOST, f"the newest is {newest}, not {attack.newest}")
        if contents(victim.outside) != before:
            raise Finding(Outcome.LOST, "files outside of the root have changed")


QUICK = sorted(ATTACKS)[::3]


@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_folder_is_passed_over(victim: Victim, name: str) -> None:
    """A third of all."""
    check(victim, ATTACKS[name])


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(set(ATTACKS) - set(QUICK)))
def test_every_hostile_folder_is_passed_over(victim: Victim, name: str) -> None:
    """The others."""
    check(victim, ATTACKS[name])


def check_forged(victim: Victim, make: Callable[[Path], object]) -> None:
    make(victim.folder)
    with Trial("forged file", Outcome.REJECTED):
        itself, newest = bounded(lambda: look(victim.store, victim.folder, victim.known))
        if not itself or newest != 2:
            raise Finding(Outcome.SILENT, "a forged checkpoint is taken for sound")


@pytest.mark.soak
@pytest.mark.parametrize("name", HOSTILE_STATES)
def test_a_forged_description_takes_neither_memory_nor_time(victim: Victim, name: str) -> None:
    """With digests that fit."""
    check_forged(victim, lambda folder: forge(folder, state=HOSTILE_STATES[name]))


@pytest.mark.soak
@pytest.mark.parametrize("name", HOSTILE_MANIFESTS)
def test_a_forged_manifest_takes_neither_memory_nor_time(victim: Victim, name: str) -> None:
    """With digests that fit."""
    check_forged(victim, lambda folder: forge(folder, **HOSTILE_MANIFESTS[name]))


def _header(text: str, length: int | None = None) -> Callable[[bytes], bytes]:
    def change(honest: bytes) -> bytes:
        body = text.encode().ljust(len(honest) - 8)
        return (len(body) if length is None else length).to_bytes(8, "little") + body

    return change


HEADERS = {
    "2^60 bytes": lambda honest: (1 << 60).to_bytes(8, "little") + honest[8:],
    "as long as the file": lambda honest: (len(honest) + 97).to_bytes(8, "little") + honest[8:],
    "no bytes": lambda honest: bytes(8) + honest[8:],
    "nothing": lambda honest: b"",
    "no JSON": _header("{"),
    "deep": lambda honest: _header("[" * 100_000)(bytes(100_008)),
    "overlapping ranges": lambda honest: honest.replace(b'"data_offsets":[48,', b'"data_offsets":[00,'),
    "ranges out of the file": lambda honest: honest.replace(b'"data_offsets":[0,', b'"data_offsets":[9,'),
    "another dtype": lambda honest: honest.replace(b'"F32"', b'"I32"'),
    "another shape": lambda honest: honest.replace(b"[3,4]", b"[4,3]"),
    "two names alike": lambda honest: honest.replace(b"state['v']", b"state['w']"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_forged_header_is_refused(victim: Victim, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Written by the package itself around another header, so that all digests fit."""
    honest = header.encode
    shutil.rmtree(victim.folder)
    with monkeypatch.context() as patch:
        patch.setattr(header, "encode", lambda entries: HEADERS[name](honest(entries)))
        save(victim.store, 3)
    check_forged(victim, lambda folder: None)


@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.parametrize(
    "place", ["lock", "damaged", "checkpoints/.writing-", "checkpoints/.writing-run_epoch_0_iter_4"]
)
def test_strange_things_in_the_root_are_an_error_or_harmless(victim: Victim, place: str, what: str) -> None:
    """In the place of the lock, of the folder for damaged ones, and of unfinished ones; nothing outside changes."""
    path = victim.store.root / place
    shutil.copytree(victim.folder, path)
    STRANGE[what](path, victim.outside)
    (victim.folder / "state.json").write_bytes(b"")
    before = contents(victim.outside)
    with Trial("hostile root") as trial:

        def start() -> float | None:
            with victim.store.lock():
                return newest_value(victim.store)

        if bounded(lambda: refused(start)):
            trial.outcome = Outcome.REJECTED
        elif bounded(start) != 2:
            raise Finding(Outcome.LOST, "the newest is not the last sound one")
        if contents(victim.outside) != before and place != "damaged":
            raise Finding(Outcome.LOST, "files outside of the root have changed")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "helios_fn")
