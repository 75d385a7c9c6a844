"""What each cost model costs: in time, and in a portfolio's figures at several sizes.

    python benchmarks/costs.py speed
    python benchmarks/costs.py table --prices FILE [--partial] [--split all]

`speed` steps batches of portfolios over a synthetic market with volume, one cost model after the
other in each round beside the proportional fee alone, and prints the ratio of their rates. `table`
runs equal weight, 60/40 (where there are funds of bonds) and the anchors' average through
prices in long form with a column volume, under every model and size, and prints a Markdown
table.
"""

from __future__ import annotations

import argparse
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is loaded

import dataclasses  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

from finflow_sb3.quiet import silence_gym_notice  # noqa: E402

silence_gym_notice()

import numpy as np  # noqa: E402

from finflow_sb3.backtest_rules import SPLITS, split_span  # noqa: E402
from finflow_sb3.config import (  # noqa: E402
    ANCHORS,
    EnvSettings,
    EvaluationSettings,
    MarketSettings,
)
from finflow_sb3.envs.batch import PortfolioBatch  # noqa: E402
from finflow_sb3.envs.observations import ObservedMarket, observe, observe_source  # noqa: E402
from finflow_sb3.evaluation.baselines import AVERAGE, baselines  # noqa: E402
from finflow_sb3.evaluation.curve import Curve  # noqa: E402
from finflow_sb3.evaluation.metrics import measures  # noqa: E402
from finflow_sb3.evaluation.plot_style import label  # noqa: E402
from finflow_sb3.market.anchors import Anchors, refit_rows  # noqa: E402
from finflow_sb3.market.prices import PriceTable  # noqa: E402

MODELS: dict[str, dict[str, Any]] = {
    "fee alone": {},
    "ticket of 5, minimum of 1": {"ticket": 5.0, "minimum_fee": 1.0},
    "linear slippage": {"slippage": "linear"},
    "square-root slippage": {"slippage": "square_root"},
    "exponential slippage": {"slippage": "exponential"},
    "impact 0.1": {"impact": 0.1},
    "all, square root": {
        "ticket": 5.0,
        "minimum_fee": 1.0,
        "slippage": "square_root",
        "impact": 0.1,
    },
}
SIZES = (1e6, 1e8, 1e9)
RULES = ("equal_weight", "sixty_forty", AVERAGE)
COMPARED = EvaluationSettings(baselines=("equal_weight", "sixty_forty", "anchors"))
DAYS, ASSETS = 1500, 20
SECONDS = 0.4


def synthetic_market() -> ObservedMarket:
    """Random walks with volume, and anchors drawn at random."""
    rng = np.random.default_rng(0)
    close = 100.0 * np.exp(np.cumsum(rng.normal(3e-4, 0.01, (DAYS, ASSETS)), axis=0))
    dates = np.busday_offset(np.datetime64("2010-01-04"), np.arange(DAYS), roll="forward")
    names = tuple(f"S{i:02d}" for i in range(ASSETS))
    volume = rng.lognormal(15.0, 0.5, close.shape)
    prices = PriceTable(dates.astype("datetime64[D]"), names, close, volume=volume)
    settings = MarketSettings()
    refits = refit_rows(DAYS, settings)
    weights = rng.dirichlet(np.ones(ASSETS + 1), size=(len(refits), len(ANCHORS)))
    index = np.searchsorted(refits, np.arange(DAYS), side="right") - 1
    anchors = Anchors(ANCHORS, refits, weights, index, np.zeros(len(refits), dtype=bool))
    return observe(prices, settings, anchors=anchors)


def rate(batch: PortfolioBatch, actions: list[Any]) -> float:
    """Portfolio-steps a second over whole episodes, for at least `SECONDS`."""
    begin, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - begin < SECONDS:
        batch.reset()
        for step in range(batch.episode_length):
            batch.step(actions[step % len(actions)])
        done += batch.episode_length
    return done * batch.n_envs / (time.perf_counter() - begin)


def speed(rounds: int, portfolios: int) -> None:
    market = synthetic_market()
    rng = np.random.default_rng(0)
    size = (portfolios, market.layout.action_size)
    actions = [rng.uniform(-1.0, 1.0, size) for _ in range(8)]
    batches = {}
    for name, model in MODELS.items():
        env = EnvSettings(**model, capital=1e8 if model else None)
        seeds: list[int | None] = list(range(portfolios))
        batches[name] = PortfolioBatch(market, market.splits.train, portfolios, env, seeds=seeds)
    plain, *others = MODELS
    rates: dict[str, list[float]] = {name: [] for name in MODELS}
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for turn in range(rounds):
        for name in others:
            order = (plain, name) if turn % 2 == 0 else (name, plain)
            found = {each: rate(batches[each], actions) for each in order}
            rates[name].append(found[name])
            rates[plain].append(found[plain])
            ratios[name].append(found[name] / found[plain])
    print(f"{ASSETS} assets, {portfolios} portfolios, {rounds} rounds, medians (range)\n")
    print("| costs | steps/s | over the fee alone |")
    print("|---|---:|---:|")
    for name in MODELS:
        low, high = min(ratios.get(name, [1.0])), max(ratios.get(name, [1.0]))
        ratio = f"{np.median(ratios.get(name, [1.0])):.2f} ({low:.2f} to {high:.2f})"
        print(f"| {name} | {np.median(rates[name]):,.0f} | {ratio if name != plain else 1} |")


def figures(curve: Curve, rate: Any) -> str:
    """Net Sharpe, and costs a year in basis points of the value that paid them."""
    found = measures(curve, rate)
    return f"{found['sharpe']:.3f} | {1e4 * found['cost_drag']:.1f}"


def table(source: str, partial: bool, split: Any) -> None:
    market = observe_source(source, MarketSettings(partial=partial), EnvSettings())
    span = split_span(market, split)
    cash = market.prices.cash_rate[span.start + 1 : span.stop]
    days = span.return_dates(market.prices.dates)
    print(f"{len(market.prices.assets)} assets, {days[0]} to {days[1]}\n")
    there = {curve.name for curve in baselines(market, span, market.env, COMPARED)}
    rules = [rule for rule in RULES if rule in there]
    heads = " | ".join(f"{label(rule)}: Sharpe | bp a year" for rule in rules)
    print(f"| costs | capital | {heads} |")
    print(f"|---|---:|{'---:|---:|' * len(rules)}")
    for name, model in MODELS.items():
        for capital in SIZES if model else SIZES[:1]:
            env = dataclasses.replace(market.env, **model, capital=capital)
            curves = {c.name: c for c in baselines(market, span, env, COMPARED)}
            cells = " | ".join(figures(curves[rule], cash) for rule in rules)
            print(f"| {name} | {f'{capital:.0e}' if model else 'any'} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    timed = what.add_parser("speed")
    timed.add_argument("--rounds", type=int, default=5)
    timed.add_argument("--portfolios", type=int, default=256)
    printed = what.add_parser("table")
    printed.add_argument("--prices", required=True, help="long form with a column volume")
    printed.add_argument("--partial", action="store_true", help="assets may start or end within")
    printed.add_argument("--split", choices=SPLITS, default="test", help="days")
    options = parser.parse_args()
    if options.what == "speed":
        speed(options.rounds, options.portfolios)
    else:
        table(options.prices, options.partial, options.split)


if __name__ == "__main__":
    main()
