"""Reinforcement learning with the world in the state: policy gradients that learn to balance a pole.

    python examples/reinforce.py --root runs/reinforce      # kill it, run the line again: same bits

Everything that the future depends on is in ``state.extra``: 32 carts in mid-episode, what each has earned so far, and
the statistics of finished episodes. Actions and new episodes are drawn from ``hf.step_key``. So a run that is killed
goes on with the carts where they were. Each iteration plays 32 moves of all carts and follows the policy gradient
(Williams 1992, https://doi.org/10.1007/BF00992696), with the advantage over a learned baseline. It prints the mean
return of the last episodes, which rises from about 20 to more than 150 (200 is the limit), and the digest of the
final state.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import nn

import helios_fn as hf
from helios_fn.testing import Job

CARTS, MOVES, LIMIT, DISCOUNT = 32, 32, 200, 0.98


def move(world: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The carts ``[n, 4]`` (position, speed, angle, angular speed; SI units) 0.02 s after a push to the right or left.

    The cart and pole of Barto, Sutton and Anderson 1983 (https://doi.org/10.1109/TSMC.1983.6313077), without friction.
    """
    _, speed, angle, spin = world.unbind(1)
    gravity, pole, total, half = 9.8, 0.1, 1.1, 0.5  # m/s^2, kg, kg with the cart, m
    sin, cos = angle.sin(), angle.cos()
    push = (torch.where(right, 10.0, -10.0) + pole * half * spin**2 * sin) / total
    turn = (gravity * sin - cos * push) / (half * (4 / 3 - pole * cos**2 / total))
    along = push - pole * half * turn * cos / total
    rates = torch.stack([speed, along, spin, turn], dim=1)
    return world + 0.02 * rates


def begin(uniform: torch.Tensor) -> torch.Tensor:
    """Fresh episodes, from uniform numbers ``[n, 4]``: nearly upright in the middle."""
    return 0.1 * uniform - 0.05


def network() -> nn.Module:
    """Three numbers for each cart: preferences for left and right, and the return to be expected."""
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3))


model, params, buffers = hf.functional(network)


def play(params, extra, key):
    """What happens in ``MOVES`` moves of all carts: observations, actions, rewards, ends, and the next ``extra``."""
    choices = hf.random.uniform(hf.random.fold_in(key, "actions"), (MOVES, CARTS))
    fresh = begin(hf.random.uniform(hf.random.fold_in(key, "episodes"), (MOVES, CARTS, 4)))
    world, earned, mean_return, told = extra["world"], extra["earned"], extra["mean_return"], []
    for choice, new in zip(choices, fresh, strict=True):
        right = choice < model(params, buffers, world)[0][:, :2].softmax(1)[:, 1]
        after, earned = move(world, right), earned + 1
        over = (after[:, 0].abs() > 2.4) | (after[:, 2].abs() > math.radians(12)) | (earned >= LIMIT)
        told.append((world, right, over))
        # Each finished episode moves the mean by 2 %; several at once do so together.
        share = 1 - 0.98 ** over.sum()
        mean_return = torch.lerp(mean_return, (earned * over).sum() / over.sum().clamp(min=1), share)
        world, earned = torch.where(over[:, None], new, after), torch.where(over, 0.0, earned)
    return (*map(torch.stack, zip(*told, strict=True)), {"world": world, "earned": earned, "mean_return": mean_return})


def loss_fn(params, seen, right, over, last):
    """Policy gradient, error of the baseline, and a little entropy, from one rollout ``[MOVES, CARTS, ...]``."""
    out, _ = model(params, buffers, seen)
    logs, value = out[..., :2].log_softmax(-1), out[..., 2]
    ahead, returns = model(params, buffers, last)[0][:, 2].detach(), []
    for ended in over.flip(0):  # each move earns 1; what follows the end of an episode is another's
        ahead = 1 + DISCOUNT * torch.where(ended, 0.0, ahead)
        returns.append(ahead)
    advantage = torch.stack(returns[::-1]) - value
    chosen = torch.where(right, logs[..., 1], logs[..., 0])
    entropy = -(logs.exp() * logs).sum(-1).mean()
    return -(chosen * advantage.detach()).mean() + 0.5 * advantage.square().mean() - 0.01 * entropy


optimizer = hf.optim.chain(hf.optim.clip_by_global_norm(0.5), hf.optim.adam(hf.schedules.linear(1e-2, 1e-3, steps=240)))


def step(state: hf.TrainState, round_number: torch.Tensor) -> hf.TrainState:
    with torch.no_grad():
        seen, right, over, extra = play(state.params, state.extra, hf.step_key(state, "rollout"))
    loss, grads = hf.value_and_grad(loss_fn)(state.params, seen, right, over, extra["world"])
    params, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {"loss": loss, "mean_return": extra["mean_return"]}
    return state.replace(params=params, opt_state=opt_state, extra=extra, metrics=metrics)


def job(rounds: int = 240, root: str | None = None) -> Job:
    """All that `hf.run` needs; also what ``python -m helios_fn.testing reinforce:job`` checks."""
    world = begin(torch.rand(CARTS, 4, generator=torch.Generator().manual_seed(0)))
    extra = {"world": world, "earned": torch.zeros(CARTS), "mean_return": torch.zeros(())}
    state = hf.init_state(params, optimizer, extra=extra)
    # There are no data, but a run counts what it reads: here the numbers of the rounds, 100 to an epoch.
    rounds_of_an_epoch = hf.Loader(range(100), batch_size=1, shuffle=False)
    cfg = hf.RunConfig(unit="iteration", total=rounds, log_every=20, checkpoint_every=50 if root else None, root=root)
    return Job(hf.guard_finite(step), state, rounds_of_an_epoch, cfg)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="the folder of the run; none keeps nothing")
    parser.add_argument("--rounds", type=int, default=240)
    options = parser.parse_args()
    torch.set_num_threads(1)  # another number of threads may give other bits
    work = job(options.rounds, options.root)
    state = hf.run(work.step, work.state, work.loader, work.cfg, **work.keywords).state
    print(f"mean return {float(state.extra['mean_return']):.1f} after {state.counters.iteration} rounds")
    print(hf.tree.digest(state))


if __name__ == "__main__":
    main()
