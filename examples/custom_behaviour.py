"""A rule of your own as offline data: IQL learns from it beside the rules that are built in.

    python examples/custom_behaviour.py

The command takes the same function by its name, from the folder that it stands in:
`finflow collect --behaviour custom_behaviour:above_average`.
"""

from __future__ import annotations

import numpy as np
from made_up import SMALL, write_prices

import finflow_sb3 as ff


def above_average(past: ff.Past) -> np.ndarray:
    """An equal part of what stands above its average of 200 days; the rest is cash."""
    rising = past.close[-1] > past.close[-200:].mean(axis=0)
    return np.asarray(rising / len(rising))


def main() -> None:
    file = str(write_prices())
    # Actions between anchors reach no weights far from all of them; `none` reaches every one.
    params = [f"prices:{file}", "action_base:none"]
    settings = ff.resolve(algo="iql", files=[SMALL], params=params)
    collected = ff.collect(settings, "own.h5", behaviours=[above_average])
    for name, (episodes, reward, distance) in collected.behaviours.items():
        print(f"{name:<38} {episodes} episodes, reward {reward:+.3f}, distance {distance:.2f}")

    found = ff.describe(collected.path, prices=ff.load_prices(file))
    print(f"actions vary in {found.coverage.participation:.1f} directions")
    pretrained = ff.pretrain(settings, collected.path)
    sharpe = pretrained.validation["sharpe"]
    print(f"best epoch {pretrained.best_epoch} of {settings.iql.epochs}, Sharpe {sharpe:.2f}")


if __name__ == "__main__":
    main()
