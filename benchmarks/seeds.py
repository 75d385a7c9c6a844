"""Test Sharpe of IQL and CQSAC over several seeds, beside the anchors' average and equal weight.

    python benchmarks/seeds.py --seeds 3 --mode demo

Prints a Markdown table: validation figures chose each policy, the test split judges it.
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np

from finflow_sb3.quiet import silence_gym_notice

silence_gym_notice()

from finflow_sb3.config_files import resolve  # noqa: E402
from finflow_sb3.pipeline import evaluate, train  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mode", default="demo", choices=("demo", "full"))
    parser.add_argument("--prices", default="us20")
    options = parser.parse_args()
    rows: dict[str, list[float]] = {}
    validation: dict[str, list[float]] = {"iql": [], "cqsac": [], "untrained": []}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as logs:
            settings = resolve(algo="cqsac", params=[f"prices:{options.prices}"]).replace(
                run={"seed": seed, "log_dir": logs, "tensorboard": False}
            )
            done = train(settings, options.mode)
            assert done.pretrained and done.finetuned and done.evaluated
            found = {**evaluate(done.pretrained.run).measures, **done.evaluated.measures}
            validation["iql"].append(done.pretrained.validation["sharpe"])
            validation["untrained"].append(done.pretrained.untrained["sharpe"])
            validation["cqsac"].append(done.finetuned.best or float("nan"))
        for name in ("iql", "cqsac", "anchors' average", "equal_weight"):
            rows.setdefault(name, []).append(found[name]["lag_0"]["sharpe"])
    print("| policy | validation Sharpe | test Sharpe, each seed | mean |")
    print("|---|---|---|---|")
    for name, sharpes in rows.items():
        chosen = validation.get("untrained" if name == "anchors' average" else name)
        before = f"{np.mean(chosen):.3f}" if chosen else ""
        each = ", ".join(f"{sharpe:.3f}" for sharpe in sharpes)
        print(f"| {name} | {before} | {each} | {np.mean(sharpes):.3f} |")


if __name__ == "__main__":
    main()
