"""A search by Optuna that gives up hopeless trials early, and can be killed and started again.

    pip install optuna
    python examples/pruning.py --root runs/pruning              # start it again after a kill: it goes on

Optuna proposes hyperparameters and hears of the validation after every epoch; where it expects nothing any more, it
ends the run. Each trial is a run with a folder of its own, and the study a file beside them, so nothing is trained
twice: a run that a kill has cut short is resumed with its last checkpoint, bit for bit, under the same trial.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from images import digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import helios_fn as hf

TRAIN_X, TRAIN_Y, TEST_X, TEST_Y = digits()


class Pruner:
    """A ``should_stop`` that tells a trial each validation's metric and asks whether to go on.

    A run that is resumed may validate once more what its trial has heard already: it is neither told nor asked twice.
    """

    def __init__(self, trial: Any, monitor: str, told: int = 0) -> None:
        self.trial, self.monitor, self.told = trial, monitor, told

    def __call__(self, state: hf.TrainState) -> bool | str:
        cycles = state.validation.cycles
        if cycles > self.told:
            self.told = cycles
            self.trial.report(float(state.validation.metrics[self.monitor]), cycles)
        return "pruned" if 0 < cycles == self.told and self.trial.should_prune() else False


def train(trial: Any, told: int, root: Path, epochs: int) -> tuple[float, bool]:
    """One run with what the trial proposes: the test accuracy, and whether it was given up."""
    rate = trial.suggest_float("learning_rate", 1e-5, 1.0, log=True)
    width = trial.suggest_categorical("width", [16, 64])
    model, params, buffers = hf.functional(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    )

    def loss_fn(params, buffers, batch, key):
        logits, buffers = model(params, buffers, batch[0])
        return F.cross_entropy(logits, batch[1]), hf.Aux(buffers=buffers, weight=len(batch[1]))

    def evaluate(params, buffers, batch):
        logits, _ = model.eval(params, buffers, batch[0])
        return hf.Aux(metrics={"accuracy": (logits.argmax(1) == batch[1]).float().mean()}, weight=len(batch[1]))

    optimizer = hf.optim.adamw(rate)
    result = hf.run(
        hf.make_step(loss_fn, optimizer),
        hf.init_state(params, optimizer, buffers=buffers),
        hf.Loader(TensorDataset(TRAIN_X, TRAIN_Y), batch_size=64),
        hf.RunConfig(
            unit="epoch", total=epochs, validate_every=1, checkpoint_every=1, progress=False,
            root=root / f"trial_{trial.number}",
        ),
        validate=hf.Validator(evaluate, hf.Loader(TensorDataset(TEST_X, TEST_Y), batch_size=256, shuffle=False)),
        should_stop=Pruner(trial, "accuracy", told),
    )  # fmt: skip
    return float(result.state.validation.metrics["accuracy"]), result.reason is hf.Reason.SHOULD_STOP


def search(root: Path, trials: int, epochs: int) -> None:
    """All trials, those of earlier starts included; one that was cut short comes first."""
    try:
        import optuna
    except ImportError:
        raise SystemExit("optuna is not installed: pip install optuna") from None
    states = optuna.trial.TrialState
    root.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="digits", storage=f"sqlite:///{root}/study.db", load_if_exists=True, direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )  # fmt: skip
    for number in range(trials):
        known, told = {trial.number: trial for trial in study.trials}, 0
        if number not in known:
            # What is proposed depends on the trial's number and on the trials before it, not on this process.
            seed = int(hf.random.fold_in(hf.random.key(6691), number)[0]) % 2**32
            study.sampler = optuna.samplers.TPESampler(seed=seed)
            trial = study.ask()
        elif known[number].state is states.RUNNING:
            trial = optuna.Trial(study, known[number]._trial_id)
            told = known[number].last_step or 0
        else:
            continue
        accuracy, pruned = train(trial, told, root, epochs)
        study.tell(trial, None if pruned else accuracy, state=states.PRUNED if pruned else states.COMPLETE)
        print(f"trial {number}: {accuracy:.4f}{', pruned' if pruned else ''}", flush=True)
    print(f"best of {trials} trials: {study.best_value:.4f} with {study.best_params}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder of the study and of all its runs")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    search(options.root, options.trials, options.epochs)
