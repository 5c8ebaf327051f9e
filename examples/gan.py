"""A step written by hand: a generator and a discriminator with an optimiser each, on real digits.

    python examples/gan.py --root runs/gan

Nothing but ``step(state, batch) -> state`` is asked of a step. This one makes two updates, draws noise from
keys of the state, and keeps a running score of its own in ``state.extra``; it resumes like any other.
"""

from __future__ import annotations

import argparse

import torch
from images import digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import helios_fn as hf

NOISE = 16


def networks() -> tuple[nn.Module, nn.Module]:
    generator = nn.Sequential(nn.Linear(NOISE, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())
    discriminator = nn.Sequential(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(64, 1))
    return generator, discriminator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs/gan", help="the folder of the run")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)  # another number of threads may give other bits
    x, _, _, _ = digits()

    with hf.random.scope(hf.random.key(1)):
        generator_module, discriminator_module = networks()
    generator, generator_params, _ = hf.functional(generator_module)
    discriminator, discriminator_params, _ = hf.functional(discriminator_module)
    optimizers = {name: hf.optim.adam(2e-3, betas=(0.5, 0.999)) for name in ("generator", "discriminator")}

    def fake(params, key, like):
        noise = hf.random.normal(hf.random.fold_in(key, "noise"), (len(like), NOISE))
        return generator(params, {}, noise)[0]

    def discriminator_loss(params, batch, key, generator_params):
        images = batch[0].flatten(1)
        real, _ = discriminator(params, {}, images, key=hf.random.fold_in(key, "real"))
        made, _ = discriminator(params, {}, fake(generator_params, key, images), key=hf.random.fold_in(key, "made"))
        return F.softplus(-real).mean() + F.softplus(made).mean()

    def generator_loss(params, batch, key, discriminator_params):
        made, _ = discriminator(
            discriminator_params, {}, fake(params, key, batch[0]), key=hf.random.fold_in(key, "made")
        )
        return F.softplus(-made).mean()

    def step(state, batch):
        params, opt_state, losses = dict(state.params), dict(state.opt_state), {}
        for name, loss_fn in (("discriminator", discriminator_loss), ("generator", generator_loss)):
            other = "generator" if name == "discriminator" else "discriminator"
            key = hf.step_key(state, name)
            losses[name], grads = hf.value_and_grad(loss_fn)(params[name], batch, key, params[other])
            params[name], opt_state[name] = optimizers[name].update(grads, opt_state[name], params[name])
        balance = 0.99 * state.extra["balance"] + 0.01 * (losses["discriminator"] - losses["generator"])
        metrics = {f"{name}_loss": loss for name, loss in losses.items()} | {"balance": balance}
        return state.replace(params=params, opt_state=opt_state, metrics=metrics, extra={"balance": balance})

    params = {"generator": generator_params, "discriminator": discriminator_params}
    opt_state = {name: optimizers[name].init(params[name]) for name in params}
    state = hf.init_state(params, opt_state=opt_state, extra={"balance": torch.zeros(())})
    cfg = hf.RunConfig(unit="epoch", total=options.epochs, checkpoint_every=1, root=options.root, name="gan")
    loader = hf.Loader(TensorDataset(x), batch_size=64)
    result = hf.run(hf.guard_finite(step), state, loader, cfg, sinks=[hf.sinks.JsonLines(), hf.sinks.TensorBoard()])

    picture = fake(result.state.params["generator"], hf.random.key(7), torch.zeros(3, 1)).detach().reshape(3, 8, 8)
    for row in range(8):
        print("   ".join("".join(" .:*#"[int(4.99 * value)] * 2 for value in image[row]) for image in picture))
    print(hf.tree.digest(result.state))


if __name__ == "__main__":
    main()
