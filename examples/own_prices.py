"""Your own prices, from a file to a report: what `finflow train --mode full` does, in Python.

    python examples/own_prices.py [prices.csv]

Take `SMALL` out, or put your own file of settings there, to train at full length.
"""

from __future__ import annotations

import sys

from made_up import SMALL, write_prices

import finflow_sb3 as ff


def main() -> None:
    file = sys.argv[1] if len(sys.argv) > 1 else str(write_prices())
    prices = ff.load_prices(file)
    print(f"{prices.n_assets} assets, {prices.dates[0]} to {prices.dates[-1]}")

    settings = ff.resolve(algo="cqsac", files=[SMALL], params=[f"prices:{file}", "fee:0.0005"])
    trained = ff.train(settings, "full")
    assert trained.pretrained and trained.finetuned and trained.evaluated
    print(f"pretrained, validation Sharpe {trained.pretrained.validation['sharpe']:.2f}")
    print(f"fine-tuned, validation Sharpe {trained.finetuned.best:.2f}")
    print(trained.evaluated.verdict)
    print(f"report: {trained.evaluated.report}")


if __name__ == "__main__":
    main()
