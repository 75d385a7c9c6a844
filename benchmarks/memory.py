"""Peak memory of runs with a full replay buffer, against the size of the buffer's arrays.

    python benchmarks/memory.py

Each case is a process of its own, and so is its base: the same run with a buffer of one step.

- `tensors`: CQSAC's own collection in an environment of 240 observations and 20 actions, into a
  `TensorReplayBuffer`, then updates
- `portfolio`: `finflow finetune` on us20 from scratch: collection into a
  `PortfolioReplayBuffer`, updates, validation, a checkpoint
- `resumed`: the same run, gone on with from that checkpoint, to another one

Prints a Markdown table. What a run may take above its base is the arrays and a tenth of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is loaded

from finflow_sb3.quiet import silence_gym_notice  # noqa: E402

silence_gym_notice()

import numpy as np  # noqa: E402
from gymnasium import spaces  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from stable_baselines3.common.vec_env import VecEnv  # noqa: E402

from finflow_sb3.config import EnvSettings, MarketSettings, Settings  # noqa: E402
from finflow_sb3.config_files import resolve  # noqa: E402
from finflow_sb3.cqsac.cqsac import CQSAC  # noqa: E402
from finflow_sb3.cqsac.replay import (  # noqa: E402
    ARRAYS,
    PortfolioReplayBuffer,
    TensorReplayBuffer,
)
from finflow_sb3.envs.observations import observe_source  # noqa: E402
from finflow_sb3.envs.portfolio import make_spaces  # noqa: E402
from finflow_sb3.pipeline import finetune  # noqa: E402
from finflow_sb3.resuming import resume  # noqa: E402

N_ENVS = 500
# Steps of all environments after the buffer is full, each with an update.
UPDATES = 20


class RandomVecEnv(VecEnv):
    """Observations and rewards out of a generator; nothing ends."""

    def __init__(self, observations: int, actions: int):
        size, box = (N_ENVS, observations), spaces.Box(-1.0, 1.0, (actions,))
        super().__init__(N_ENVS, spaces.Box(-np.inf, np.inf, (observations,)), box)
        self._rng, self._size = np.random.default_rng(0), size

    def reset(self) -> NDArray[np.float32]:
        return self._rng.standard_normal(self._size, dtype=np.float32)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Nothing depends on actions."""

    def step_wait(self) -> Any:
        rewards = self._rng.standard_normal(N_ENVS, dtype=np.float32)
        infos: list[dict[str, Any]] = [{} for _ in range(N_ENVS)]
        return self.reset(), rewards, np.zeros(N_ENVS, dtype=bool), infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name)] * N_ENVS

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * N_ENVS


def run_tensors(size: int, folder: Path) -> int:
    model = CQSAC(
        "MlpPolicy",
        RandomVecEnv(240, 20),
        buffer_size=size,
        learning_starts=size,
        replay_buffer_class=TensorReplayBuffer,
        device="cpu",
        seed=0,
    )
    model.learn(size + UPDATES * N_ENVS)
    buffer = model.replay_buffer
    assert isinstance(buffer, TensorReplayBuffer) and buffer.full
    return sum(getattr(buffer, name).nbytes for name in buffer.stored)


def portfolio_settings(size: int, folder: Path) -> Settings:
    return resolve(algo="cqsac").replace(
        cqsac={
            "n_envs": N_ENVS,
            "buffer_size": size,
            "learning_starts": size,
            "n_timesteps": size + UPDATES * N_ENVS,
        },
        run={
            "log_dir": str(folder),
            "device": "cpu",
            "tensorboard": False,
            "evaluate_interval": 10**9,
            "checkpoint_interval": 10**9,
        },
    )


def portfolio_arrays(size: int) -> int:
    """Bytes of the buffer's arrays; none of them is touched here."""
    market = observe_source("us20", MarketSettings(), EnvSettings())
    buffer = PortfolioReplayBuffer(
        size, *make_spaces(market), "cpu", N_ENVS, market_rows=market.rows, layout=market.layout
    )
    return sum(getattr(buffer, name).nbytes for name in ARRAYS)


def run_portfolio(size: int, folder: Path) -> int:
    done = finetune(portfolio_settings(size, folder))
    assert done.finished
    return portfolio_arrays(size)


def run_resumed(size: int, folder: Path) -> int:
    (run,) = folder.glob("cqsac/*")
    done = resume(run, n_timesteps=size + 2 * UPDATES * N_ENVS)
    assert done.finished
    return portfolio_arrays(size)


CASES: dict[str, Callable[[int, Path], int]] = {
    "tensors": run_tensors,
    "portfolio": run_portfolio,
    "resumed": run_resumed,
}


def peak() -> int:
    """Most bytes of memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def measured(case: str, size: int, folder: Path) -> tuple[int, int]:
    """Peak and bytes of arrays of a case, in a process of its own."""
    command = [sys.executable, __file__, "--case", case, "--size", str(size)]
    command += ["--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case}:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak"], found["arrays"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1_000_000, help="transitions")
    parser.add_argument("--case", choices=CASES, help="run this one here, and print JSON")
    parser.add_argument("--folder", type=Path, help="where --case writes its run")
    options = parser.parse_args()
    if options.case is not None:
        arrays = CASES[options.case](options.size, options.folder)
        print(json.dumps({"peak": peak(), "arrays": arrays}))
        return
    observe_source("us20", MarketSettings(), EnvSettings())  # its anchors come from disk after this
    print("| case | base, MB | peak, MB | arrays, MB | (peak − base) / arrays |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        small, large = Path(temporary) / "base", Path(temporary) / "full"
        for case in CASES:
            base, least = measured(case, N_ENVS, small)
            most, arrays = measured(case, options.size, large)
            ratio = (most - base) / (arrays - least)
            figures = " | ".join(f"{n / 1e6:,.0f}" for n in (base, most, arrays))
            print(f"| {case} | {figures} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
