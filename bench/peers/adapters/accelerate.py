"""Accelerate: `save_state`, `load_state` and `skip_first_batches`.

- https://huggingface.co/docs/accelerate/usage_guides/checkpoint: model, optimiser, generators and registered objects
  are saved; "to resume from a particular point in the active DataLoader", ``skip_first_batches``, in the first epoch.
- https://github.com/huggingface/accelerate/blob/main/examples/by_feature/checkpointing.py: the loop.
- https://huggingface.co/docs/accelerate/package_reference/utilities (`DataLoaderConfiguration`):
  ``use_seedable_sampler`` "ensures training results are fully reproducible", with ``set_seed``.
- https://huggingface.co/docs/accelerate/package_reference/torch_wrappers: ``set_epoch``. For
  ``use_stateful_dataloader`` see `accelerate_stateful`.
"""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F
from torch.utils.data import DataLoader

from .. import job
from ..leg import Leg

TITLE = "Accelerate"
RESUME = "`load_state`, `use_seedable_sampler`, `set_seed`, `set_epoch`, `skip_first_batches`"


def prepare() -> str:
    """Imports it."""
    import accelerate  # noqa: F401

    return ""


def train(leg: Leg) -> job.Final:
    """The loop with the documented way to skip."""
    loader = DataLoader(job.Data(), job.BATCH_SIZE, shuffle=True, num_workers=leg.workers)
    return loop(leg, loader, {"use_seedable_sampler": True, "data_seed": job.SEED}, skips=True)


def loop(leg: Leg, loader: Any, options: dict[str, Any], *, skips: bool) -> job.Final:
    """The loop of the example, with ``options`` for loaders; ``skips`` tells whether to skip what was consumed."""
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed

    set_seed(job.SEED)
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=job.ACCUMULATION,
        step_scheduler_with_optimizer=True,
        dataloader_config=DataLoaderConfiguration(**options),
        project_config=ProjectConfiguration(project_dir=str(leg.root)),
    )
    plain = job.network()
    memory = job.optimizer_of(plain)
    module, optimizer, scheduler, loader = accelerator.prepare(plain, memory, job.scheduler_of(memory), loader)
    start, done = 0, 0
    saved = sorted(leg.root.glob("step_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    if saved:
        accelerator.load_state(str(saved[-1]))
        start, done = divmod(int(saved[-1].name.rpartition("_")[2]), job.BATCHES_PER_EPOCH)
    for epoch in range(start, job.EPOCHS):
        loader.set_epoch(epoch)
        batches = accelerator.skip_first_batches(loader, done) if skips and done else loader
        for index, (ids, x, y) in enumerate(batches, start=epoch * job.BATCHES_PER_EPOCH + done + 1):
            leg.take(ids, x, y)
            with accelerator.accumulate(module):
                accelerator.backward(F.cross_entropy(module(x), y))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if index % (job.ACCUMULATION * job.CHECKPOINT_EVERY) == 0:
                accelerator.save_state(str(leg.root / f"step_{index}"))
        done = 0
    return job.final_of(accelerator.unwrap_model(module), memory)
