"""What was found, as Markdown that also reads well in a console."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..results import table
from .job import ACCUMULATION, BATCH_SIZE, BATCHES_PER_EPOCH, CHECKPOINT_EVERY, EPOCHS, MICRO_BATCHES, SAMPLES
from .trials import Findings, Trial

PLACES = ("none yet", "mid-epoch", "epoch's end")
SAME, CHANGED = "same workers", "other workers"


LEGEND = (
    "Exact in order: every micro-batch holds the samples it holds when nobody kills; what came after the last "
    "checkpoint may come again. In bytes: also augmented the same. In final state: all parameters, buffers and moments "
    "have the same bits. Done again: micro-batches after the last checkpoint that were trained on a second time, on "
    "average where the order is exact; helios_fn writes its checkpoints in a thread, so that here, where a micro-batch "
    "takes milliseconds, the newest is often not on disk yet when the kill comes; the second row has it wait."
)


def report(findings: Sequence[Findings], versions: str, kills: Sequence[int]) -> str:
    """The whole text."""
    parts = [
        "# Who resumes exactly?",
        _conditions(findings, kills),
        versions,
        "## Exact resumes",
        _summary(findings),
        LEGEND,
        "## Exact final states, by where the last checkpoint lies",
        _places(findings),
        "## What goes wrong",
        "\n".join(line for found in findings for line in _reasons(found)),
        "## How each resumes",
        "\n".join(f"- {found.title}: {found.resume}." for found in findings),
    ]
    return "\n\n".join(parts) + "\n"


def _conditions(findings: Sequence[Findings], kills: Sequence[int]) -> str:
    places = "every micro-batch" if len(kills) == MICRO_BATCHES - 1 else "micro-batch " + ", ".join(map(str, kills))
    notes = sorted({found.notes for found in findings if found.notes})
    return " ".join(
        [
            f"Written by `make peers`. The same job in each training loop: {SAMPLES} shuffled samples in batches of "
            f"{BATCH_SIZE} (the last is smaller), so {BATCHES_PER_EPOCH} micro-batches in an epoch; {EPOCHS} epochs; "
            "augmentation drawn in the dataset from torch's and Python's generators; dropout, BatchNorm, AdamW, "
            f"warm-up and cosine; an update every {ACCUMULATION} micro-batches; a checkpoint every {CHECKPOINT_EVERY} "
            "updates, which falls in the middle of an epoch and on its last batch in turn. A process of its own kills "
            f"itself with SIGKILL after {places}. Another one resumes and trains to the end, once with as many loader "
            "workers as before the kill (0 or 2) and once, from the same files, with the other number. Everything is "
            "compared with an uninterrupted run of the same library and settings, with the number of workers from "
            "before the kill. Each library resumes as its documentation has it (cited in `bench/peers/adapters/`); "
            "where that leaves a choice, the one that is exact most often was taken.",
            *notes,
        ]
    )


def _summary(findings: Sequence[Findings]) -> str:
    head = ["", "trials", "order", "bytes", "final state", "done again", "two runs alone are equal"]
    rows = []
    for found in findings:
        if found.error:
            rows.append([found.title, f"none: {found.error}", *["-"] * 5])
            continue
        ordered = [trial.verdict for trial in found.trials if trial.verdict.order]
        again = f"{sum(verdict.again for verdict in ordered) / len(ordered):.1f}" if ordered else "-"
        rows.append(
            [
                found.title,
                str(len(found.trials)),
                *(count(found.trials, part) for part in ("order", "batches", "state")),
                again,
                "yes" if found.repeats else "no",
            ]
        )
    return table(head, rows)


def _places(findings: Sequence[Findings]) -> str:
    head = ["", *(f"{place}, {workers}" for workers in (SAME, CHANGED) for place in PLACES)]
    rows = []
    for found in findings:
        cells = []
        for same in (True, False):
            for place in PLACES:
                chosen = [t for t in found.trials if (t.before == t.after) is same and t.place == place]
                cells.append(f"{count(chosen, 'state')} of {len(chosen)}" if chosen else "-")
        rows.append([found.title, *cells])
    return table(head, rows)


def count(trials: Iterable[Trial], part: str) -> str:
    """How many are exact in this."""
    return str(sum(getattr(trial.verdict, part) for trial in trials))


def _reasons(found: Findings) -> list[str]:
    """For each cause the number of trials and where they lie."""
    causes: dict[str, list[Trial]] = {}
    for trial in found.trials:
        if trial.verdict.why:
            causes.setdefault(trial.verdict.why, []).append(trial)
    if not causes:
        return [f"- {found.title}: " + (found.error or "nothing.")]
    lines = [f"- {found.title}:"]
    for why, trials in sorted(causes.items(), key=lambda item: -len(item[1])):
        workers = _listed(trials, lambda trial: f"{trial.before} -> {trial.after}")
        lines.append(f"  - {len(trials)} times {why} (workers {workers}; {_listed(trials, lambda t: t.place)})")
    return lines


def _listed(trials: Iterable[Trial], of: Callable[[Trial], str]) -> str:
    return ", ".join(dict.fromkeys(of(trial) for trial in trials))
