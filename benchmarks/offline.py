"""Gradient steps a second of the offline phase, beside d3rlpy's own `fit`.

    python benchmarks/offline.py --rounds 5 --steps 100

The same data, networks (those of the packaged configuration), batch size and likelihood. Two
processes take turns: d3rlpy's `fit` over its replay buffer with its own losses and optimisers,
and ours. First, losses of both on equal batches and equal weights, and how far they have parted
after some steps on their own. Prints a Markdown table of the rounds and the median ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
for _name in THREADS:
    os.environ.setdefault(_name, "1")  # read when numpy is loaded; torch is told below

import numpy as np  # noqa: E402
import torch  # noqa: E402

from finflow_sb3.quiet import silence_gym_notice  # noqa: E402

silence_gym_notice()

from d3rlpy.algos.qlearning.torch.iql_impl import IQLImpl  # noqa: E402
from d3rlpy.dataset import Episode, InfiniteBuffer, ReplayBuffer  # noqa: E402
from d3rlpy.logging import NoopAdapterFactory  # noqa: E402
from d3rlpy.optimizers import AdamFactory  # noqa: E402
from d3rlpy.torch_utility import TorchMiniBatch  # noqa: E402

from finflow_sb3.allocator import keep_freed_memory  # noqa: E402
from finflow_sb3.config import Settings  # noqa: E402
from finflow_sb3.config_files import resolve  # noqa: E402
from finflow_sb3.offline.collect import collect_dataset  # noqa: E402
from finflow_sb3.offline.dataset import OfflineDataset  # noqa: E402
from finflow_sb3.offline.transitions import TransitionBatch  # noqa: E402
from finflow_sb3.opening import open_pinned  # noqa: E402
from finflow_sb3.pretrain.iql import ExpertIQL, ExpertIQLImpl, make_iql  # noqa: E402
from finflow_sb3.pretrain.modules import mini_batch  # noqa: E402
from finflow_sb3.results import Watch  # noqa: E402


class PeerImpl(ExpertIQLImpl):
    """d3rlpy's own computations but for the policy's likelihood, which our networks need, and
    the form of the target that its quantile critics ask for.
    """

    compute_critic_loss = IQLImpl.compute_critic_loss
    compute_value_loss = IQLImpl.compute_value_loss
    _compute_weight = IQLImpl._compute_weight

    def compute_target(self, batch: TorchMiniBatch) -> torch.Tensor:
        critic: Any = self._modules.q_funcs[0]
        return super().compute_target(batch).expand(-1, critic._n_quantiles)


class PeerIQL(ExpertIQL):
    implementation = PeerImpl


def settings_of(batch_size: int, episodes: int) -> Settings:
    changes = {"batch_size": batch_size}
    return resolve(algo="iql", environ={}).replace(iql=changes, collect={"episodes": episodes})


def data_of(settings: Settings) -> OfflineDataset:
    settings, market = open_pinned(settings, None, Watch())
    return collect_dataset(market, settings.env_kwargs, settings.collect, settings.run.seed)


def ours_of(settings: Settings, data: OfflineDataset) -> ExpertIQL:
    torch.manual_seed(0)
    return make_iql(settings.iql, data.layout, settings.env_kwargs.gate_scale)


def peer_of(settings: Settings, data: OfflineDataset) -> ExpertIQL:
    """The same networks with the same weights, d3rlpy's losses and its own optimisers."""
    ours = ours_of(settings, data)
    config = dataclasses.replace(
        ours.config, actor_optim_factory=AdamFactory(), critic_optim_factory=AdamFactory()
    )
    coefficients = (ours.balance_coef, ours.prior_coef, ours.gate_scale)
    peer = PeerIQL(config, ours.inputs, ours.sizes, *coefficients)
    peer.create_impl((data.layout.size,), data.layout.action_size)
    for name, module in peer.torch_modules().items():
        module.load_state_dict(ours.torch_modules()[name].state_dict())
    return peer


def buffer_of(data: OfflineDataset) -> ReplayBuffer:
    """The dataset as d3rlpy holds it: an array of observations for every episode."""
    ends = np.append(data.starts[1:], len(data))
    episodes = []
    for start, end, terminal in zip(data.starts, ends, data.terminal, strict=True):
        batch = data.gather(torch.arange(start, end))
        arrays = (batch.observations.numpy(), batch.actions.numpy(), batch.rewards.numpy())
        episodes.append(Episode(*arrays, bool(terminal)))
    return ReplayBuffer(InfiniteBuffer(), episodes=episodes)


def compare(settings: Settings, data: OfflineDataset, batches: int) -> tuple[float, float]:
    """Largest difference of a loss on equal batches: with equal weights, and each on its own."""
    ours, peer, follower = (make(settings, data) for make in (ours_of, peer_of, peer_of))
    generator = torch.Generator().manual_seed(1)
    apart = own = 0.0
    for step in range(batches):
        drawn = torch.randint(len(data), (settings.iql.batch_size,), generator=generator)
        batch = data.gather(drawn)
        for name, module in follower.torch_modules().items():
            module.load_state_dict(ours.torch_modules()[name].state_dict())
        losses = ours.update_on(batch)
        apart = max(apart, _difference(losses, _update(follower, batch, step)))
        own = max(own, _difference(losses, _update(peer, batch, step)))
    return apart, own


def _update(peer: ExpertIQL, batch: TransitionBatch, step: int) -> dict[str, float]:
    assert peer.impl is not None
    found = peer.impl.update(mini_batch(batch, "cpu"), step)
    return {ours: found[theirs] for theirs, ours in peer.losses.items()}


def _difference(mine: dict[str, float], theirs: dict[str, float]) -> float:
    """Relative where a loss is over 1."""
    return max(abs(mine[k] - theirs[k]) / max(1.0, abs(theirs[k])) for k in theirs)


# ------------------------------------------------------------------ the race


def race_ours(settings: Settings, steps: int, turns: Connection) -> None:
    """Seconds of `steps` gradient steps, whenever asked."""
    keep_freed_memory()
    torch.set_num_threads(1)
    data = data_of(settings)
    algo, generator = ours_of(settings, data), torch.Generator().manual_seed(0)

    def run() -> None:
        for _ in range(steps):
            drawn = torch.randint(len(data), (settings.iql.batch_size,), generator=generator)
            algo.update_on(data.gather(drawn))

    answer(run, turns)


def race_peer(settings: Settings, steps: int, threads: int, turns: Connection) -> None:
    data = data_of(settings)
    algo, buffer = peer_of(settings, data), buffer_of(data)
    torch.set_num_threads(threads)  # what opens a market sets one

    def run() -> None:
        algo.fit(
            buffer,
            n_steps=steps,
            n_steps_per_epoch=steps,
            logger_adapter=NoopAdapterFactory(),
            show_progress=False,
            save_interval=10**9,
        )

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        answer(run, turns)


def answer(run: Callable[[], None], turns: Connection) -> None:
    """Run once to warm up, then at each request; wall and processor seconds go back, and page
    faults.
    """
    run()
    turns.send(None)
    while turns.recv():
        before = time.perf_counter(), time.process_time(), page_faults()
        run()
        after = time.perf_counter(), time.process_time(), page_faults()
        turns.send(tuple(b - a for a, b in zip(before, after, strict=True)))


def page_faults() -> int:
    """Pages that the system had to clear for this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Racer:
    """A process that runs when it is its turn."""

    def __init__(self, threads: int, target: Callable[..., None], *args: Any):
        os.environ.update(dict.fromkeys(THREADS, str(threads)))  # which it inherits
        context = get_context("spawn")
        self.turns, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(*args, theirs), daemon=True)
        self.process.start()
        self.turns.recv()

    def run(self) -> tuple[float, float, int]:
        self.turns.send(True)
        used: tuple[float, float, int] = self.turns.recv()
        return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--peer-threads", type=int, default=1, help="torch threads of d3rlpy")
    parser.add_argument("--batches", type=int, default=20, help="on which losses are compared")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = settings_of(options.batch_size, options.episodes)
    apart, own = compare(settings, data_of(settings), options.batches)
    print(f"largest difference of a loss on equal batches and weights: {apart:.1e}")
    print(f"after up to {options.batches} steps of each on its own: {own:.1e}\n")
    peer = Racer(options.peer_threads, race_peer, settings, options.steps, options.peer_threads)
    ours = Racer(1, race_ours, settings, options.steps)
    print("| round | d3rlpy's `fit`, steps/s | ours, steps/s | ratio | ratio of processor time |")
    print("|---|---|---|---|---|")
    ratios: list[tuple[float, float]] = []
    for number in range(1, options.rounds + 1):
        (theirs, their_work, their_faults), (mine, my_work, faults) = peer.run(), ours.run()
        ratios.append((theirs / mine, their_work / my_work))
        rates = f"{options.steps / theirs:.1f} | {options.steps / mine:.1f}"
        print(f"| {number} | {rates} | {ratios[-1][0]:.2f} | {ratios[-1][1]:.2f} |", flush=True)
    wall, work = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"\nmedian ratio {wall:.2f}, of processor time {work:.2f}; batch {options.batch_size}")
    each = f"{their_faults / options.steps:,.0f}, ours {faults / options.steps:,.0f}"
    print(f"page faults a step in the last round: d3rlpy's {each}")


if __name__ == "__main__":
    main()
