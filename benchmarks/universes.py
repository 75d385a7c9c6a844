"""Whether training on random sub-universes (`asset_dropout`) makes a policy carry over better.

    python benchmarks/universes.py --other FILE [--partial] [--dropout 0,0.3,0.5] [--seeds 3]

Trains on the embedded universe and on another one with each dropout and seed, and backtests every
policy on both, net of costs. What is learned shows as the edge over the anchors' average, which is
the untrained policy: on the training days of the universe that it was trained on, on that one's
test days, and on the other's test days. Over-fitting is an edge that stays on the training days.
Prints a Markdown table of mean edges, least and greatest over seeds; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is loaded

import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

from finflow_sb3.quiet import silence_gym_notice  # noqa: E402

silence_gym_notice()

import numpy as np  # noqa: E402

from finflow_sb3.config import EvaluationSettings, Settings  # noqa: E402
from finflow_sb3.config_files import resolve  # noqa: E402
from finflow_sb3.ensembles import Policies, load_policies  # noqa: E402
from finflow_sb3.envs.observations import ObservedMarket  # noqa: E402
from finflow_sb3.evaluation.backtest import backtest  # noqa: E402
from finflow_sb3.evaluation.baselines import baseline  # noqa: E402
from finflow_sb3.evaluation.metrics import measures  # noqa: E402
from finflow_sb3.market.splits import Span  # noqa: E402
from finflow_sb3.opening import open_market  # noqa: E402
from finflow_sb3.pipeline import train  # noqa: E402

SPLITS = ("train", "test")


def sharpe(market: ObservedMarket, span: Span, policies: Policies | None) -> float:
    """Of a policy, or of the anchors' average."""
    env = market.env
    curve = (
        baseline("anchors", market, span, env, EvaluationSettings())
        if policies is None
        else backtest(market, span, env, policies.on(market.layout).policy, policies.name)
    )
    cash = market.prices.cash_rate[span.start + 1 : span.stop]
    return measures(curve, cash)["sharpe"]


def edges(run: Path, own: str, others: dict[str, Settings]) -> dict[str, float]:
    """Edge over the anchors' average, by where it is measured."""
    policies = load_policies(run)
    found = {}
    for name, settings in others.items():
        dropout = {"asset_dropout": policies.settings.env_kwargs.asset_dropout}
        market = open_market(settings.replace(env_kwargs=dropout), policies.scaler)
        for split in SPLITS if name == own else ("test",):
            span = market.splits.named()[split]
            where = f"own {split}" if name == own else f"other {split}"
            found[where] = sharpe(market, span, policies) - sharpe(market, span, None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", required=True, help="a file of prices")
    parser.add_argument("--partial", action="store_true", help="its assets may start late")
    parser.add_argument("--dropout", default="0,0.3,0.5")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    params = [f"cqsac.n_timesteps:{options.steps}", f"iql.epochs:{options.epochs}"]
    plain = resolve(algo="cqsac", params=params)
    partial = {"prices": options.other, "partial": options.partial}
    markets = {"us20": plain, Path(options.other).name.split(".")[0]: plain.replace(market=partial)}
    print("| trained on | asset_dropout | own training days | own test days | other's test days |")
    print("|---|---|---|---|---|", flush=True)
    for own, settings in markets.items():
        for dropout in map(float, options.dropout.split(",")):
            rows = []
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as logs:
                    run = {"seed": seed, "log_dir": logs, "tensorboard": False}
                    env = {"asset_dropout": dropout}
                    done = train(settings.replace(run=run, env_kwargs=env), report=False)
                    assert done.finetuned is not None
                    rows.append(edges(done.finetuned.run, own, markets))
            cells = []
            for where in ("own train", "own test", "other test"):
                each = np.array([row[where] for row in rows])
                cells.append(f"{each.mean():+.3f} ({each.min():+.3f} … {each.max():+.3f})")
            print(f"| {own} | {dropout:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
