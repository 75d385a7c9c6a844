"""CQSAC as an algorithm of Stable-Baselines3, in an environment that has nothing to do with money.

    python examples/cqsac_anywhere.py [timesteps]

Used bare it is TQC; here with a conservative penalty and five experts. 10,000 steps, some minutes,
are enough to swing the pendulum up.
"""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from finflow_sb3 import CQSAC


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    model = CQSAC(
        "MultiExpertPolicy",
        env,
        learning_rate=1e-3,
        learning_starts=100,
        cql_alpha=0.5,
        cql_batch_size=64,
        policy_kwargs={"n_quantiles": 16},
        seed=0,
    )
    judge = EvalCallback(make_vec_env("Pendulum-v1", seed=1), eval_freq=250, verbose=0)
    model.learn(steps, callback=judge)
    model.save("pendulum")

    again = CQSAC.load("pendulum")
    observation, _ = gym.make("Pendulum-v1").reset(seed=0)
    assert np.array_equal(
        model.predict(observation, deterministic=True)[0],
        again.predict(observation, deterministic=True)[0],
    )
    mean, deviation = evaluate_policy(again, make_vec_env("Pendulum-v1", seed=2), 3)
    print(f"{steps} steps: reward {mean:.0f} ± {deviation:.0f} over 3 episodes")


if __name__ == "__main__":
    main()
