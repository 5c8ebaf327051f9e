"""A step of one's own, compiled with its exchange. A module of its own, which the ranks of a pool can import."""

from __future__ import annotations

import torch

import helios_fn as hf


def trained(compiled: bool) -> str:
    """The digest after three iterations of four micro-batches."""
    numbers = torch.Generator().manual_seed(3)
    data = torch.utils.data.TensorDataset(torch.randn(15, 6, generator=numbers), torch.randn(15, 3, generator=numbers))
    model, params, buffers = hf.functional(lambda: torch.nn.Linear(6, 3))

    def loss_fn(params, buffers, batch, key):
        output, _ = model(params, buffers, batch[0])
        return (output - batch[1]).square().mean(), hf.Aux(weight=len(batch[0]))

    grad_fn = hf.value_and_grad(loss_fn, has_aux=True)

    def step(state, batch):
        mean = hf.microsteps(grad_fn, state, batch)
        params = {name: leaf - 0.1 * mean.grads[name] for name, leaf in state.params.items()}
        return state.replace(params=params, metrics={"loss": mean.loss})

    cfg = hf.RunConfig(unit="iteration", total=3, micro_batches=4, progress=False)
    given = hf.compile(step, backend="eager") if compiled else step
    return hf.tree.digest(hf.run(given, hf.init_state(params, buffers=buffers), hf.Loader(data, 2), cfg).state)
