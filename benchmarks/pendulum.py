"""Mean evaluation reward on Pendulum-v1 after 10,000 steps: CQSAC beside sb3-contrib's TQC.

    python benchmarks/pendulum.py --seeds 5

All have the same learning rate, nets and defaults; seeds alternate between the algorithms. A
return is the mean over evaluation episodes whose starts are the same for all. Prints a Markdown
table with every seed's return, their mean and its 95 % interval (Student's t over seeds), and
whether CQSAC's mean lies in TQC's interval. -200 counts as solved.
"""

from __future__ import annotations

import argparse
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is loaded

import sys  # noqa: E402
from typing import Any  # noqa: E402

from finflow_sb3.quiet import silence_gym_notice  # noqa: E402

silence_gym_notice()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sb3_contrib import TQC  # noqa: E402
from scipy.stats import t as student  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402

from finflow_sb3.cqsac.cqsac import CQSAC  # noqa: E402

STEPS, SOLVED, START_SEED = 10_000, -200.0, 1_000
RIVALS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "TQC": (TQC, "MlpPolicy", {"net_arch": [64, 64]}),
    "CQSAC": (CQSAC, "MlpPolicy", {"net_arch": [64, 64]}),
    "CQSAC, MultiExpertPolicy": (CQSAC, "MultiExpertPolicy", {"critic_hidden": [64, 64]}),
}


def returns_of(name: str, seed: int, steps: int = STEPS, episodes: int = 20) -> float:
    """Train rival `name` for `steps` and give its mean return over `episodes`."""
    algorithm, policy, nets = RIVALS[name]
    model = algorithm(
        policy,
        "Pendulum-v1",
        learning_rate=1e-3,
        buffer_size=steps,
        policy_kwargs=dict(nets),
        seed=seed,
        device="cpu",
    )
    model.learn(steps)
    starts = make_vec_env("Pendulum-v1", n_envs=1, seed=START_SEED)
    mean, _ = evaluate_policy(model, starts, n_eval_episodes=episodes)
    return float(np.mean(mean))


def interval(returns: list[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds."""
    if len(returns) < 2:
        return float("nan"), float("nan")
    spread = np.std(returns, ddof=1) / np.sqrt(len(returns))
    half = float(student.ppf(0.975, len(returns) - 1) * spread)
    return float(np.mean(returns)) - half, float(np.mean(returns)) + half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--episodes", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {name: [] for name in RIVALS}
    for seed in range(options.seeds):
        for name, returns in found.items():
            returns.append(returns_of(name, seed, options.steps, options.episodes))
            print(f"seed {seed}: {name} {returns[-1]:.0f}", file=sys.stderr, flush=True)
    print("| algorithm | return, each seed | mean | 95 % interval | seeds over -200 |")
    print("|---|---|---|---|---|")
    for name, returns in found.items():
        low, high = interval(returns)
        each = ", ".join(f"{value:.0f}" for value in returns)
        solved = sum(value > SOLVED for value in returns)
        mean = f"{np.mean(returns):.1f} | {low:.1f} to {high:.1f}"
        print(f"| {name} | {each} | {mean} | {solved} of {len(returns)} |")
    low, high = interval(found["TQC"])
    inside = low <= np.mean(found["CQSAC"]) <= high
    print(f"\nCQSAC's mean lies {'in' if inside else 'outside'} TQC's interval.")


if __name__ == "__main__":
    main()
