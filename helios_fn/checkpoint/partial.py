"""Loading parts of a checkpoint into another state, with a report that leaves nothing out."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from .. import tree
from ..patterns import Chooser
from ..types import Tree
from .assembly import sharded_as
from .contents import by_name, open_contents
from .files import OS
from .leaves import DTYPES, Leaf, TensorSpec
from .listing import newest_valid
from .structure import Mismatch, expected_leaf

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str] | None
_SHOWN = 8
_PACKED = {"torch.float4_e2m1fn_x2"}  # two numbers in a byte: torch converts them to nothing else


class Report(NamedTuple):
    """What `restore` did with each leaf, by name.

    Each leaf of the template is in one of ``loaded``, ``misfits``, ``unchosen`` and ``missing``; each
    leaf of the checkpoint was loaded, or did not fit, or is in ``unused``.

    Attributes:
        path: what was read.
        loaded: the leaves of the template that were taken from the checkpoint, and their names there.
        misfits: leaves of the template whose counterparts are of another type, dtype or shape.
        unchosen: leaves of the template that the checkpoint has, but ``only`` left out.
        missing: leaves of the template that the checkpoint does not have.
        unused: leaves of the checkpoint that went nowhere, by their names there.
        cast: those of ``loaded`` that were converted, and the dtypes that they have in the checkpoint.
    """

    path: Path
    loaded: Mapping[str, str]
    misfits: tuple[Mismatch, ...]
    unchosen: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    cast: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"restored from {self.path}"]
        loaded = [name if name == source else f"{name} (of {source})" for name, source in self.loaded.items()]
        for names, words in (
            (loaded, "loaded"),
            ([f"{name} (was {dtype})" for name, dtype in self.cast.items()], "of them cast"),
            (self.missing, "kept, for the checkpoint has nothing of the name"),
            (self.unchosen, "kept, for they were not chosen"),
            (self.unused, "of the checkpoint not used"),
        ):
            if names:
                lines.append(f"  {len(names)} {words}: {_some(names)}")
        if self.misfits:
            lines.append(f"  {len(self.misfits)} kept, for what the checkpoint has does not fit:")
            lines += [f"    {_in_words(misfit)}" for misfit in self.misfits]
        return "\n".join(lines)


class Restored(NamedTuple):
    """A tree with parts of a checkpoint in it, and what was and was not loaded."""

    tree: Tree
    report: Report


def restore(
    path: Path | str,
    like: Tree,
    *,
    only: str | Sequence[str] | None = None,
    rename: Rename = None,
    strict: bool = True,
    cast: bool = False,
) -> Restored:
    """Put parts of a checkpoint into a tree of whatever structure, such as a trained body under a new head.

    Leaves meet by name: the path with dots, such as ``params.0.weight`` in a `TrainState`, or ``0.weight``
    in what `helios_fn.functional` returns and in an exported file. A leaf is taken if both sides have the
    same type, dtype (unless ``cast``) and shape. All others stay the template's own, and containers always
    are. Every byte of a checkpoint is checked; a plain safetensors file has nothing to be checked against.

    Args:
        path: a checkpoint's folder, the root of a run for its newest valid one, or a file that ends in
            ``.safetensors``.
        like: the template, a `TrainState` or any part of one. It is not changed.
        only: which leaves of the checkpoint to take, by their names there: shell patterns as in
            `helios_fn.optim.groups` (``"params.*"``, ``["*", "!*.bias"]``; ``*`` matches dots too).
        rename: the names of the chosen leaves to those in the template: subtrees to subtrees, as in
            ``{"averages": "params"}`` (``""`` is the whole tree; the longest counts), or a function.
        strict: each chosen leaf must find its place. Otherwise what fits is taken, and the report tells.
        cast: convert floating tensors to the floating dtypes of the template's, and complex to complex, as torch's
            ``load_state_dict`` does; a converted tensor shares memory with no other. Whole numbers and truth values are
            never converted.

    Returns:
        The new tree, with tensors in fresh memory on the devices of the template's; and the `Report`.

    Raises:
        ValueError: a pattern or a renaming matches nothing in the checkpoint, nothing is loaded at all,
            or two leaves go by one name. With ``strict``: a chosen leaf has no place, or does not fit.
        TypeError: ``only`` or ``rename`` is something else.
        CheckpointError: there is no checkpoint, or it is damaged.

    Example:
        >>> cfg = hf.RunConfig(unit="epoch", total=1, root="pretrained", progress=False)
        >>> trained = hf.init_state({"body": torch.ones(2), "head": torch.ones(1)})
        >>> result = hf.run(lambda state, batch: state, trained, hf.Loader(torch.arange(4), 2), cfg)
        >>> fresh = {"body": torch.zeros(2), "head": torch.zeros(1)}
        >>> path = "pretrained/checkpoints/run_epoch_1_iter_2"
        >>> params, report = hf.restore(path, fresh, only="params.body", rename={"params": ""})
        >>> params["body"].tolist(), params["head"].tolist(), report.unchosen
        ([1.0, 1.0], [0.0], ())
    """
    root = Path(path)
    contents = open_contents(newest_valid(OS, root).path if (root / "checkpoints").is_dir() else root)
    stored = contents.leaves()
    sources = by_name(stored, f"in {contents.path}")
    chosen = _chooser(only, sources, contents.path)
    renamed = _renamed([name for name in sources if chosen(name)], rename, contents.path)
    leaves, treespec = tree.flatten(like)
    template = dict(zip(by_name(tree.paths(like), "in the template"), leaves, strict=True))

    specs = {name: stored[path] for name, path in sources.items()}
    report = _match(contents.path, specs, renamed, template, cast)
    if strict:
        castable = any(_cast_from(specs[renamed[each.path]], template[each.path]) for each in report.misfits)
        _insist_on_all(report, [name for name in renamed if name not in template], template, castable)
    if not report.loaded:
        raise ValueError(f"nothing in {contents.path} has a place in the template and fits it:\n{report}")
    origin = {name: sources[source] for name, source in report.loaded.items()}
    values = contents.values({path: _device(template[name]) for name, path in origin.items()})
    for name in report.cast:
        values[origin[name]] = values[origin[name]].to(template[name].dtype)
    new = [sharded_as(values[origin[name]], leaf) if name in origin else leaf for name, leaf in template.items()]
    return Restored(tree.unflatten(treespec, new), report)


def _cast_from(saved: Leaf, leaf: Any) -> str | None:
    """The dtype of a stored leaf, if that is all in which it differs from a template's, and it can be converted."""
    if not isinstance(saved, TensorSpec) or not isinstance(leaf, torch.Tensor) or saved.shape != tuple(leaf.shape):
        return None
    dtypes = DTYPES[saved.dtype], leaf.dtype
    if dtypes[0] == dtypes[1] or not _PACKED.isdisjoint(map(str, dtypes)):
        return None
    alike = all(dtype.is_floating_point for dtype in dtypes) or all(dtype.is_complex for dtype in dtypes)
    return saved.dtype if alike else None


def _match(
    path: Path, stored: Mapping[str, Leaf], renamed: Mapping[str, str], template: Mapping[str, Any], cast: bool
) -> Report:
    """What becomes of each leaf, by what the chosen ones are called in the template."""
    loaded: dict[str, str] = {}
    converted: dict[str, str] = {}
    misfits: list[Mismatch] = []
    for name, source in renamed.items():
        if name in template:
            found, expected = str(stored[source]), str(expected_leaf("", template[name]))
            if found == expected:
                loaded[name] = source
            elif cast and (dtype := _cast_from(stored[source], template[name])):
                loaded[name], converted[name] = source, dtype
            else:
                misfits.append(Mismatch(name, found, expected))
    kept = [name for name in template if name not in renamed]
    at_home = {source for name, source in renamed.items() if name in template}
    return Report(
        path=path,
        loaded=loaded,
        misfits=tuple(misfits),
        unchosen=tuple(name for name in kept if name in stored),
        missing=tuple(name for name in kept if name not in stored),
        unused=tuple(source for source in stored if source not in at_home),
        cast=converted,
    )


def _device(leaf: Any) -> torch.device:
    known = isinstance(leaf, torch.Tensor) and leaf.device.type != "meta"
    return leaf.device if known else torch.device("cpu")


def _chooser(only: Any, names: Mapping[str, str], path: Path) -> Callable[[str], bool]:
    if only is None:
        return lambda name: True
    patterns = [only] if isinstance(only, str) else only
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"only must be a pattern such as 'params.*' or a list of them, got {only!r}"[:200])
    if not patterns:
        raise ValueError("only is empty and chooses nothing: leave it out")
    chooser = Chooser(patterns)
    for pattern in chooser.idle(names):
        raise ValueError(f"only: the pattern {pattern!r} matches nothing in {path}{_hint(pattern, names)}")
    return chooser


def _renamed(names: Sequence[str], rename: Rename, path: Path) -> dict[str, str]:
    """For each name in the template the name in the checkpoint."""
    if rename is not None and not callable(rename) and not isinstance(rename, Mapping):
        raise TypeError(f"rename must be a dict of names or a function of a name, got {type(rename).__name__}")
    if isinstance(rename, Mapping):
        for old in rename:
            if not any(_below(name, old) for name in names):
                raise ValueError(f"rename: nothing chosen in {path} is called {old!r}{_hint(old, names)}")
    found: dict[str, str] = {}
    for name in names:
        new = _moved(name, rename) if isinstance(rename, Mapping) else rename(name) if rename is not None else name
        if not isinstance(new, str):
            raise TypeError(f"rename({name!r}) returned {new!r}, which is no name")
        if found.setdefault(new, name) != name:
            raise ValueError(f"rename makes {new!r} of both {found[new]!r} and {name!r}")
    return found


def _below(name: str, subtree: str) -> bool:
    return not subtree or name == subtree or name.startswith(f"{subtree}.")


def _moved(name: str, rename: Mapping[str, str]) -> str:
    fitting = [old for old in rename if _below(name, old)]
    if not fitting:
        return name
    old = max(fitting, key=len)
    rest = name[len(old) :].removeprefix(".")
    return ".".join(part for part in (rename[old], rest) if part)


def _insist_on_all(report: Report, homeless: Sequence[str], template: Mapping[str, Any], castable: bool) -> None:
    lines = [f"  {_in_words(misfit)}" for misfit in report.misfits]
    lines += [f"  {name}: has no place in the template{_hint(name, template)}" for name in homeless]
    if lines:
        shown = lines[:_SHOWN] + ([f"  ... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])
        raise ValueError(
            f"not all that was chosen of {report.path} can be loaded; leave it out with a pattern in only "
            f"('!head.*'), rename it, {'set cast=True to convert dtypes, ' if castable else ''}"
            "or set strict=False to take what fits:\n" + "\n".join(shown)
        )


def _in_words(misfit: Mismatch) -> str:
    return f"{misfit.path}: saved {misfit.saved}, expected {misfit.expected}"


def _hint(wanted: str, names: Iterable[str]) -> str:
    """Names like the wanted one, or some that there are; patterns of whole subtrees among them."""
    known = dict.fromkeys(names)
    parts = [name.split(".") for name in known]
    subtrees = dict.fromkeys(".".join(part[:end]) for part in parts for end in range(1, len(part)))
    tail = ".*" if wanted.endswith("*") else ""
    negated = "!" if wanted.startswith("!") else ""
    close = difflib.get_close_matches(wanted.removeprefix("!"), [*(name + tail for name in subtrees), *known], n=2)
    if close:
        return f"; did you mean {' or '.join(repr(negated + name) for name in close)}?"
    return f"; there are {_some(list(known))}"


def _some(names: Sequence[str]) -> str:
    """Some names in full; many by what they begin with, and how many these are."""
    if len(names) <= _SHOWN:
        return ", ".join(names)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    shown = [f"{group}.* ({len(found)})" if len(found) > 1 else found[0] for group, found in groups.items()]
    return ", ".join(shown[:_SHOWN]) + (f", ... ({len(names)} in all)" if len(shown) > _SHOWN else "")
