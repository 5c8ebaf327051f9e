"""A checkpoint is whole or it is refused: no damaged or hostile file is ever loaded, or does harm."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_fn import tree
from helios_fn.checkpoint import FileSystem, Store, canonical, header, verify
from helios_fn.checkpoint.checksum import entry_of
from helios_fn.errors import CheckpointError, ResumeRefused

FILES = ("manifest.json", "state.json", "tensors.safetensors")


class Volatile(FileSystem):
    def sync(self, handle: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


def state(value: float) -> dict[str, Any]:
    return {
        "w": torch.full((3, 4), value),
        "n": [int(value), 2.5, None, "text"],
        "v": torch.arange(5, dtype=torch.uint8),
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three checkpoints, at iterations 1, 2 and 3."""
    store = Store(tmp_path, "run", files=Volatile())
    for i in (1, 2, 3):
        store.save(state(i), epoch=0, iteration=i, micro_step=i, record={"i": i})
    return store


def folder(store: Store, i: int) -> Path:
    return store.folder / f"run_epoch_0_iter_{i}"


@pytest.mark.parametrize("name", FILES)
def test_appended_bytes_are_noticed(store: Store, name: str) -> None:
    """White space at the end included."""
    path = folder(store, 3) / name
    for extra in (b"\n", b" ", b"\0", b"x"):
        whole = path.read_bytes()
        path.write_bytes(whole + extra)
        with pytest.raises(CheckpointError, match=name):
            verify(path.parent)
        path.write_bytes(whole)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _swap(path: Path) -> None:
    shutil.copy(path.parent.with_name("run_epoch_0_iter_1") / path.name, path)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = [Path.unlink, _truncate, _empty, _swap, _link, _pipe, _become_folder]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    store: Store, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning that says which file; nothing is deleted."""
    if (damage, name) == (_swap, "manifest.json"):
        pytest.skip("a manifest of another checkpoint is the next test's subject")
    damage(folder(store, 3) / name)
    with caplog.at_level(logging.WARNING, "helios_fn"):
        newest = store.newest()
    assert newest is not None
    assert newest.iteration == 2
    assert tree.diff(store.load(newest, state(0)), state(2)) == []
    assert (store.root / "damaged" / folder(store, 3).name).is_dir()
    assert not folder(store, 3).exists()
    assert str(folder(store, 3)) in caplog.text
    assert name in caplog.text


def test_a_manifest_with_the_files_of_another_checkpoint_is_damage(store: Store) -> None:
    """Files are bound to their manifest by digest."""
    shutil.copy(folder(store, 1) / "manifest.json", folder(store, 3) / "manifest.json")
    newest = store.newest()
    assert newest is not None
    assert newest.iteration == 2


def test_several_damaged_checkpoints_are_passed_over(store: Store) -> None:
    """Also twice under the same name."""
    for round_ in (1, 2):
        _empty(folder(store, 3) / "state.json")
        _empty(folder(store, 2) / "manifest.json")
        newest = store.newest()
        assert newest is not None
        assert newest.iteration == 1
        assert len(list((store.root / "damaged").iterdir())) == 2 * round_
        for i in (2, 3):
            store.save(state(i), epoch=0, iteration=i, micro_step=i, record={"i": i})
    assert (store.root / "damaged" / "run_epoch_0_iter_3.1").is_dir()


def test_files_that_do_not_belong_to_it_are_never_read(store: Store) -> None:
    """A note left in the folder is no damage."""
    (folder(store, 3) / "notes.txt").write_text("the good one")
    verify(folder(store, 3))
    newest = store.newest()
    assert newest is not None
    assert newest.iteration == 3


def test_where_none_is_valid_that_is_an_error_again_and_again(store: Store) -> None:
    """Were the damaged ones moved away, the second start would take the run for a new one."""
    for i in (1, 2, 3):
        _truncate(folder(store, i) / FILES[i - 1])
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none of the 3 checkpoints of run 'run'"):
            store.newest()


def test_damage_after_the_choice_is_noticed_by_the_load(store: Store) -> None:
    """Each byte is checked again while it is loaded."""
    newest = store.newest()
    assert newest is not None
    path = newest.path / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"checksum of bytes 0 to \d+ differs"):
        store.load(newest, state(0))


def test_a_link_to_a_checkpoint_is_none(store: Store, tmp_path: Path) -> None:
    """What is listed lies in the root itself; an explicit path may well be a link."""
    shutil.move(folder(store, 3), tmp_path / "away")
    folder(store, 3).symlink_to(tmp_path / "away")
    assert [entry.iteration for entry in store.entries()] == [2, 1]
    assert store.at(folder(store, 3)).iteration == 3
    newest = store.newest()
    assert newest is not None
    assert newest.iteration == 2
    assert (tmp_path / "away" / "manifest.json").exists()


def test_no_permission_is_no_damage(store: Store) -> None:
    """A checkpoint that cannot be read at the moment is not given up."""

    class Forbidding(Volatile):
        def open(self, path: Path) -> int:
            raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(CheckpointError, match=r"Permission denied \(EACCES\)"):
        Store(store.root, "run", files=Forbidding()).newest()
    assert folder(store, 3).is_dir()


# Hostile files: consistent in every digest, written by somebody who means harm. ------------------------


def forge(path: Path, *, state: bytes | None = None, **changes: Any) -> None:
    """Replace ``state.json`` or fields of the manifest, and make all else fit, digests included."""
    body = json.loads((path / "manifest.json").read_bytes())
    del body["digest"]
    contents = {} if state is None else {"state.json": state, "tensors.safetensors": matching_tensors(state)}
    for name, content in contents.items():
        (path / name).write_bytes(content)
        body["files"][name] = described_file(content)
    body |= changes
    body["digest"] = hashlib.sha256(canonical.dump(body)).hexdigest()
    (path / "manifest.json").write_bytes(canonical.dump(body, indent=1))


def described_file(content: bytes) -> Any:
    """What the manifest says of a file."""
    return {"size": len(content), "chunks": list(entry_of(content).chunks)}


def matching_tensors(state: bytes) -> bytes:
    """A tensor file as long as ``state`` says, where that is possible."""
    try:
        entries = [header.Entry(*entry) for entry in json.loads(state)["entries"]]
        size = sum(entry.size for entry in entries)
        return header.encode(entries) + bytes(size if size < 1 << 20 else 0)
    except (ValueError, KeyError, TypeError, RecursionError):
        return b""


def tensor(**changes: Any) -> Any:
    spec = {"kind": "tensor", "dtype": "float32", "shape": [3], "strides": [1], "storage": 0, "offset": 0}
    return {**spec, **changes}


def described(node: Any, entries: Any = (("state", "F32", [3]),)) -> bytes:
    return canonical.dump({"entries": list(entries), "structure": node})


HOSTILE_STATES = {
    "nothing": b"",
    "not JSON": b"{",
    "not ASCII": b'"\xff"\n',
    "a depth bomb": b"[" * 1_000_000,
    "a deep string": b'"' + b"[" * 1_000_000,
    "deep objects": b'{"a":' * 100_000,
    "a long number": b"9" * 1_000_000 + b"\n",
    "a huge exponent": b"1e999999999\n",
    "two keys alike": b'{"entries":[],"entries":[],"structure":{"children":[],"keys":[],"kind":"none","name":""}}\n',
    "white space": b'{"entries": [], "structure": {}}\n',
    "no structure": b'{"entries":[]}\n',
    "deep nodes": described(json.loads('{"kind":"list","name":"","keys":[],"children":[' * 200 + "]}" * 200), []),
    "unknown kind": described({"kind": "object", "value": 1}, []),
    "kind of another type": described({"kind": ["tensor"]}, []),
    "a class by name": described({"kind": "node", "class": "os.system", "children": ["true"]}, []),
    "unknown dtype": described(tensor(dtype="object")),
    "dtype that is an attribute": described(tensor(dtype="nn")),
    "storage out of range": described(tensor(storage=1)),
    "negative storage": described(tensor(storage=-1)),
    "no storage": described(tensor(storage=None)),
    "beyond the storage": described(tensor(shape=[4])),
    "offset beyond the storage": described(tensor(offset=1)),
    "negative offset": described(tensor(offset=-1)),
    "negative stride": described(tensor(strides=[-1])),
    "float size": described(tensor(shape=[3.0])),
    "bool size": described(tensor(shape=[True])),
    "huge expanded shape": described(tensor(shape=[2**40, 2**40, 3], strides=[0, 0, 1])),
    "huge empty shape": described(tensor(shape=[0, 2**50, 2**50], strides=[0, 0, 0], storage=None), []),
    "many dimensions": described(tensor(shape=[1] * 10_000, strides=[1] * 10_000)),
    "shape without strides": described(tensor(strides=[])),
    "unused storage": described({"kind": "int", "value": 1}),
    "larger than the file": described(tensor(shape=[2**50]), [("state", "F32", [2**50])]),
    "entry of unknown dtype": described(tensor(), [("state", "F33", [3])]),
    "entry of wrong length": described(tensor(), [("state", "F32", [2])]),
    "entry of many dimensions": described(tensor(), [("state", "F32", [2**60] * 10_000)]),
    "reserved entry": described(tensor(), [("__metadata__", "F32", [3])]),
    "entries alike": described(tensor(), [("a", "F32", [3]), ("a", "F32", [0])]),
    "int as text": described({"kind": "int", "value": "12"}, []),
    "bool as int": described({"kind": "bool", "value": 1}, []),
    "float as int": described({"kind": "float", "value": 1}, []),
    "float of few bits": described({"kind": "float", "value": "00"}, []),
    "float of no bits": described({"kind": "float", "value": "zz"}, []),
    "complex of one part": described({"kind": "complex", "value": [1.0]}, []),
    "keys that are missing": described({"kind": "dict", "name": "", "keys": [], "children": [tensor()]}),
    "keys alike": described({"kind": "dict", "name": "", "keys": ["a", "a"], "children": [tensor(), tensor()]}),
    "keys of a list": described({"kind": "list", "name": "", "keys": ["a"], "children": [tensor()]}),
    "key that is a list": described({"kind": "dict", "name": "", "keys": [["a"]], "children": [tensor()]}),
    "None with children": described({"kind": "none", "name": "", "keys": [], "children": [tensor()]}),
}


def test_the_forgery_itself_is_not_what_is_noticed(store: Store) -> None:
    """An honest description, forged in the same way, is accepted."""
    forge(folder(store, 3), state=described(tensor()))
    found = store.at(folder(store, 3))
    assert store.load(found, torch.ones(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("case", HOSTILE_STATES)
def test_a_hostile_description_is_refused(store: Store, case: str) -> None:
    """With a `CheckpointError`, quickly, and without memory for what it claims."""
    forge(folder(store, 3), state=HOSTILE_STATES[case])
    with pytest.raises(CheckpointError, match=r"(state\.json|tensors\.safetensors) is damaged"):
        verify(folder(store, 3))
    newest = store.newest()
    assert newest is not None
    assert newest.iteration == 2


def test_a_hostile_header_is_never_parsed(store: Store) -> None:
    """The only acceptable header follows from ``state.json``; any other is refused unread."""
    path = folder(store, 3) / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[:8] = (2**63).to_bytes(8, "little")
    path.write_bytes(data)
    files = json.loads((path.parent / "manifest.json").read_bytes())["files"]
    files[path.name] = described_file(bytes(data))
    forge(path.parent, files=files)
    with pytest.raises(CheckpointError, match="its header is not the one"):
        verify(path.parent)


HOSTILE_MANIFESTS = {
    "negative iteration": {"iteration": -1},
    "float iteration": {"iteration": 3.0},
    "bool epoch": {"epoch": True},
    "huge micro_step": {"micro_step": 2**70},
    "another field": {"class": "os.system"},
    "record of another type": {"record": []},
    "no files": {"files": {}},
    "a file elsewhere": {"files": {"../../state.json": {"size": 1, "chunks": ["0" * 32]}}},
    "a size too large": {
        "files": {name: {"size": 2**62, "chunks": ["0" * 32]} for name in ("state.json", "tensors.safetensors")}
    },
    "a digest of another kind": {"files": {"state.json": {"size": 1, "chunks": ["0" * 31]}}},
    "a file without size": {"files": {"state.json": {"chunks": ["0" * 32]}}},
}


@pytest.mark.parametrize("case", HOSTILE_MANIFESTS)
def test_a_hostile_manifest_is_refused(store: Store, case: str) -> None:
    """Right digests do not make it right."""
    forge(folder(store, 3), **HOSTILE_MANIFESTS[case])
    with pytest.raises(CheckpointError):
        verify(folder(store, 3))


def test_nesting_is_bounded_before_parsing() -> None:
    """Not by Python's recursion limit, which differs between versions and callers."""
    assert canonical.parse(b"[" * 256 + b"]" * 256 + b"\n") is not None
    with pytest.raises(ValueError, match="deeper than 256"):
        canonical.parse(b"[" * 257 + b"]" * 257 + b"\n")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:0123456789eE.-+\\ntrufalsNI', max_size=60).map(str.encode))
def test_the_parser_raises_nothing_but_value_errors(data: bytes) -> None:
    """For any bytes; and what it accepts, it would write the same."""
    try:
        value = canonical.parse(data)
    except ValueError:
        return
    assert canonical.dump(value) == data


def test_a_manifest_of_another_format_is_refused_and_stays(store: Store) -> None:
    """It is sound, only not for this version: not damage, and no reason to fall back."""
    forge(folder(store, 3), format=3)
    with pytest.raises(ResumeRefused, match="format 3"):
        store.newest()
    assert folder(store, 3).is_dir()


def test_a_dtype_that_this_torch_lacks_is_refused_and_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same goes for a checkpoint of a newer torch."""
    from helios_fn.checkpoint import leaves

    monkeypatch.delitem(leaves.DTYPES, "uint8")
    with pytest.raises(ResumeRefused, match="use a newer torch"):
        store.newest()
    assert folder(store, 3).is_dir()
