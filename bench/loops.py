"""The same job in other people's training loops, written as their documentation has it.

Each function runs a `Job` from its first to its last batch. Imports are inside: who lacks a peer measures the others.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .harness import Span, Stopwatch
from .models import LEARNING_RATE, Batch

LOG_EVERY = 10
LOSS = torch.tensor(0.5)


class Feed:
    """Batches from memory, with a length. It also holds the watch, so that nobody's preparations are timed.

    ``span`` is what passed from handing out batch ``warm`` to handing out the last one.
    """

    def __init__(self, batches: list[Any], total: int, warm: int) -> None:
        self.batches, self.total, self.warm = batches, total, warm
        self.span = Span(0.0, 0.0, 0)

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Any]:
        batches, count = self.batches, len(self.batches)
        for index in range(self.warm):
            yield batches[index % count]
        watch = Stopwatch()
        for index in range(self.warm, self.total - 1):
            yield batches[index % count]
        self.span = watch.span(self.total - 1 - self.warm)
        yield batches[-1]


class Job(NamedTuple):
    """What is to be done: with a module, training by fused AdamW; without one, nothing."""

    feed: Feed
    folder: Path
    bar: bool = False
    tensorboard: bool = False
    text: bool = False
    module: nn.Module | None = None
    loss: Callable[[nn.Module, Batch], torch.Tensor] | None = None

    def compute(self, batch: Any) -> torch.Tensor:
        """The loss of a batch; a constant where nothing is to be done."""
        return LOSS if self.module is None or self.loss is None else self.loss(self.module, batch)

    def optimizer(self) -> torch.optim.Optimizer:
        """Of the module's parameters."""
        assert self.module is not None
        return torch.optim.AdamW(self.module.parameters(), lr=LEARNING_RATE, fused=True)


Run = Callable[[Job], None]


def bare(job: Job) -> None:
    """The loop written by hand. It logs nothing."""
    optimizer = job.optimizer() if job.module is not None else None
    for batch in job.feed:
        if optimizer is None:
            job.compute(batch)
        else:
            _update(job, optimizer, batch)


def _update(job: Job, optimizer: torch.optim.Optimizer, batch: Any) -> torch.Tensor:
    optimizer.zero_grad()
    loss = job.compute(batch)
    loss.backward()
    optimizer.step()
    return loss.detach()


def lightning(job: Job) -> None:
    """Lightning, with automatic optimisation where there is something to optimise."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        automatic_optimization = job.module is not None

        def __init__(self) -> None:
            super().__init__()
            self.inner = job.module

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = job.compute(batch)
            if job.tensorboard:
                self.log("loss", loss, prog_bar=job.bar)
            return loss

        def configure_optimizers(self) -> Any:
            return job.optimizer() if job.module is not None else None

    loggers = [TensorBoardLogger(str(job.folder))] if job.tensorboard else []
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=[*loggers, CSVLogger(str(job.folder))] if job.text else loggers or False,
        log_every_n_steps=LOG_EVERY,
        enable_progress_bar=job.bar,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=str(job.folder),
    )
    trainer.fit(Module(), job.feed)


def ignite(job: Job) -> None:
    """Ignite: an engine, with its progress bar and TensorBoard handlers attached."""
    from ignite.engine import Engine, Events
    from ignite.handlers import ProgressBar
    from ignite.handlers.tensorboard_logger import TensorboardLogger

    optimizer = job.optimizer() if job.module is not None else None

    def process(engine: Engine, batch: Any) -> torch.Tensor:
        return LOSS if optimizer is None else _update(job, optimizer, batch)

    engine = Engine(process)
    if job.bar:
        ProgressBar(persist=True).attach(engine, output_transform=lambda loss: {"loss": loss})
    writer = TensorboardLogger(log_dir=str(job.folder)) if job.tensorboard else None
    if writer is not None:
        writer.attach_output_handler(
            engine,
            event_name=Events.ITERATION_COMPLETED(every=LOG_EVERY),
            tag="train",
            output_transform=lambda loss: {"loss": loss},
        )
    if job.text:
        log = _text_log(job)

        @engine.on(Events.ITERATION_COMPLETED(every=LOG_EVERY))
        def write(engine: Engine) -> None:
            log.info("iteration %d, loss %.6f", engine.state.iteration, float(engine.state.output))

    engine.run(job.feed, max_epochs=1)
    if writer is not None:
        writer.close()


def accelerate(job: Job) -> None:
    """A hand-written loop with an Accelerator, and tqdm for a bar."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from tqdm import tqdm

    AcceleratorState._reset_state(True)
    options = {"log_with": "tensorboard", "project_dir": str(job.folder)} if job.tensorboard else {}
    accelerator = Accelerator(cpu=True, **options)
    if job.tensorboard:
        accelerator.init_trackers("run")
    module, optimizer = nn.Identity() if job.module is None else job.module, None
    if job.module is not None:
        module, optimizer = accelerator.prepare(job.module, job.optimizer())
    log = _text_log(job) if job.text else None
    bar = tqdm(total=len(job.feed), disable=not job.bar)
    for index, batch in enumerate(job.feed, 1):
        with accelerator.accumulate(module):
            loss = job.compute(batch)
            if optimizer is not None:
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        bar.update(1)
        if index % LOG_EVERY == 0:
            if job.tensorboard:
                accelerator.log({"loss": loss.detach()}, step=index)
            if log is not None:
                log.info("iteration %d, loss %.6f", index, float(loss))
    bar.close()
    accelerator.end_training()


def helios(job: Job) -> None:
    """Helios 2: its trainer in the iteration unit. Its data loader is replaced by the feed that all have."""
    from helios.core import loggers
    from helios.data import DataModule
    from helios.data.samplers import ResumableSequentialSampler
    from helios.model import Model
    from helios.trainer import Trainer

    class Data(DataModule):
        def setup(self) -> None:
            """The feed is ready."""

        def train_dataloader(self) -> Any:
            return job.feed, ResumableSequentialSampler(job.feed, batch_size=1)

    class Network(Model):
        def setup(self, for_inference: bool = False) -> None:
            self.optimizer = job.optimizer() if job.module is not None else None

        def train_step(self, batch: Any, state: Any) -> None:
            self._loss_items["loss"] = LOSS if self.optimizer is None else _update(job, self.optimizer, batch)

        def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
            super().on_training_batch_end(state, should_log)
            if not should_log:
                return
            writer = loggers.get_tensorboard_writer()
            if writer is not None:
                writer.add_scalar("loss", self._loss_items["loss"], state.current_iteration)
            if job.text:
                loggers.get_root_logger().info(f"{state.current_iteration}, {self._running_losses['loss']:.6f}")

    logs = job.tensorboard or job.text
    trainer = Trainer(
        run_name="bench",
        train_unit="iteration",
        total_steps=len(job.feed),
        print_frequency=LOG_EVERY if logs else None,
        use_cpu=True,
        enable_tensorboard=job.tensorboard,
        enable_file_logging=job.text,
        enable_progress_bar=job.bar,
        log_root=job.folder if logs else None,
        print_banner=False,
    )
    if not trainer.fit(Network("bench"), Data()):
        raise RuntimeError("Helios ended with an error, see above")


def _text_log(job: Job) -> logging.Logger:
    log = logging.getLogger(f"bench.{job.folder.name}")
    log.propagate = False
    log.setLevel(logging.INFO)
    log.handlers = [logging.FileHandler(job.folder / "log.txt")]
    return log


FRAMEWORKS: dict[str, Run] = {"Lightning": lightning, "Ignite": ignite, "Accelerate": accelerate, "Helios": helios}
