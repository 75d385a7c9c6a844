"""Environment steps a second: the batch against a plain gymnasium loop.

    python benchmarks/env.py --out docs/images/env.png

One round steps `PortfolioVecEnv` through whole episodes of every portfolio (observations,
rewards, infos and the resets at their ends included), then SB3's `DummyVecEnv` over as many
`PortfolioEnv` for as long; rounds alternate between them and between the numbers of assets, so
that all meet the same load. A step of B portfolios counts as B. 20 assets are us20 with its own
anchors; the larger markets are random walks with random anchors, refitted as often, because
skfolio takes minutes for them. Prints Markdown tables of medians, with the range over rounds.
"""

from __future__ import annotations

import argparse
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is loaded

import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from finflow_sb3.quiet import silence_gym_notice  # noqa: E402

silence_gym_notice()

import gymnasium as gym  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv  # noqa: E402

from finflow_sb3.config import ANCHORS, EnvSettings, MarketSettings  # noqa: E402
from finflow_sb3.envs.observations import ObservedMarket, observe, observe_source  # noqa: E402
from finflow_sb3.envs.portfolio import PortfolioEnv  # noqa: E402
from finflow_sb3.envs.vec import PortfolioVecEnv  # noqa: E402
from finflow_sb3.evaluation import plot_style as style  # noqa: E402
from finflow_sb3.files import write_whole  # noqa: E402
from finflow_sb3.market.anchors import Anchors, refit_rows  # noqa: E402
from finflow_sb3.market.prices import PriceTable  # noqa: E402

Float = NDArray[np.float64]

PORTFOLIOS = (1, 16, 64, 256, 1024)
ASSETS = (20, 100, 500)
DAYS = 2500
SECONDS = 0.4
COLOURS = {20: "#0b4f8a", 100: "#009e73", 500: "#d55e00"}


@dataclass
class Case:
    """Portfolio-steps a second of one size, round by round."""

    assets: int
    portfolios: int
    ours: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> Float:
        return np.asarray(np.array(self.ours) / np.array(self.plain))

    @property
    def step_time(self) -> Float:
        """Seconds for a step of all portfolios."""
        return np.asarray(self.portfolios / np.array(self.ours))


def synthetic_market(n_assets: int, seed: int = 0) -> ObservedMarket:
    """Random walks, with weights drawn at random on the days on which anchors are refitted."""
    rng = np.random.default_rng(seed)
    log_returns = rng.normal(3e-4, 0.01, size=(DAYS, n_assets))
    start = np.datetime64("2010-01-04")
    dates = np.busday_offset(start, np.arange(DAYS), roll="forward").astype("datetime64[D]")
    names = tuple(f"S{i:03d}" for i in range(n_assets))
    prices = PriceTable(dates, names, 100.0 * np.exp(np.cumsum(log_returns, axis=0)))
    settings = MarketSettings()
    refits = refit_rows(DAYS, settings)
    weights = rng.dirichlet(np.ones(n_assets + 1), size=(len(refits), len(ANCHORS)))
    index = np.searchsorted(refits, np.arange(DAYS), side="right") - 1
    none = np.zeros(len(refits), dtype=bool)
    anchors = Anchors(ANCHORS, refits, weights, index, none)
    return observe(prices, settings, anchors=anchors)


def rate(env: VecEnv, whole: int, actions: list[NDArray[np.float32]]) -> float:
    """Portfolio-steps a second, in multiples of `whole` steps, for at least `SECONDS`."""
    begin = time.perf_counter()
    done = 0
    while done == 0 or time.perf_counter() - begin < SECONDS:
        for _ in range(whole):
            env.step(actions[done % len(actions)])
            done += 1
    return done * env.num_envs / (time.perf_counter() - begin)


class Pair:
    """Both environments of one size, and what they were measured at."""

    def __init__(self, market: ObservedMarket, portfolios: int):
        self.ours = PortfolioVecEnv(market, portfolios, seed=0)
        singles: list[Callable[[], gym.Env[Any, Any]]] = [lambda: PortfolioEnv(market)] * portfolios
        self.plain = DummyVecEnv(singles)
        size = (portfolios, market.layout.action_size)
        rng = np.random.default_rng(0)
        self.actions = [rng.uniform(-1.0, 1.0, size).astype(np.float32) for _ in range(8)]
        self.case = Case(market.layout.n_assets, portfolios)
        for env in (self.ours, self.plain):
            env.reset()
            env.step(self.actions[0])

    def round(self) -> None:
        episode = self.ours.batch.episode_length
        self.case.ours.append(rate(self.ours, episode, self.actions))
        self.case.plain.append(rate(self.plain, 1, self.actions))


def middle(values: Float | list[float], form: str = ",.0f") -> str:
    """Median and range of rounds."""
    return f"{np.median(values):{form}} ({np.min(values):{form}} to {np.max(values):{form}})"


def print_tables(cases: dict[tuple[int, int], Case]) -> None:
    print("| assets | portfolios | batch, steps/s | plain loop, steps/s | ratio |")
    print("|---:|---:|---:|---:|---:|")
    for _, case in sorted(cases.items()):
        figures = [middle(case.ours), middle(case.plain), middle(case.ratio, ".1f")]
        print(f"| {case.assets} | {case.portfolios} | {' | '.join(figures)} |")
    sizes = sorted({assets for assets, _ in cases})
    if len(sizes) == 1:
        return
    print()
    heads = [f"time at {n} / time at {sizes[0]} assets" for n in sizes[1:]]
    print(f"| portfolios | {' | '.join(heads)} |")
    print("|---:|" + "---:|" * len(heads))
    for portfolios in sorted({p for _, p in cases}):
        base = cases[sizes[0], portfolios].step_time
        growth = [middle(cases[n, portfolios].step_time / base, ".2f") for n in sizes[1:]]
        print(f"| {portfolios} | {' | '.join(growth)} |")


def draw(cases: dict[tuple[int, int], Case], path: Path) -> None:
    """Steps a second over portfolios, one colour for each number of assets."""
    figure, axes = style.canvas(8.0, "Environment steps a second, observations included")
    ends, texts = [], []
    for n in sorted({assets for assets, _ in cases}):
        mine = [case for (assets, _), case in cases.items() if assets == n]
        x = [case.portfolios for case in mine]
        for name in ("ours", "plain"):
            rounds = np.array([getattr(case, name) for case in mine])
            y = np.median(rounds, axis=1)
            line = {"ours": "-", "plain": (0, (4, 1.6))}[name]
            axes.fill_between(
                x, rounds.min(axis=1), rounds.max(axis=1), color=COLOURS[n], alpha=0.15
            )
            axes.plot(x, y, color=COLOURS[n], linestyle=line, marker="o", markersize=3.5)
            ends.append(float(np.log10(y[-1])))
            texts.append((n, f"{n} assets" + ("" if name == "ours" else ", plain loop")))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(1_000.0, 2_000_000.0)
    axes.set_xticks(PORTFOLIOS, [f"{p:,}" for p in PORTFOLIOS])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("portfolios stepped together", fontsize=style.SMALL, color=style.MUTED)
    for (n, text), place in zip(texts, style.spread(np.array(ends), 0.17), strict=True):
        axes.annotate(
            text,
            (PORTFOLIOS[-1] * 1.12, 10.0**place),
            color=COLOURS[n],
            fontsize=style.SMALL,
            va="center",
            annotation_clip=False,
        )
    write_whole(path, style.png_bytes(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--assets", type=int, nargs="+", default=ASSETS, choices=ASSETS)
    parser.add_argument("--out", type=Path, help="a PNG")
    options = parser.parse_args()
    markets = [
        observe_source("us20", MarketSettings(), EnvSettings()) if n == 20 else synthetic_market(n)
        for n in options.assets
    ]
    cases: dict[tuple[int, int], Case] = {}
    for portfolios in PORTFOLIOS:
        pairs = [Pair(market, portfolios) for market in markets]
        for _ in range(options.rounds):
            for pair in pairs:
                pair.round()
        cases |= {(pair.case.assets, portfolios): pair.case for pair in pairs}
    print_tables(cases)
    if options.out is not None:
        draw(cases, options.out)


if __name__ == "__main__":
    main()
