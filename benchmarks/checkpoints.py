"""What a checkpoint costs: fine-tuning on us20 with one every 2,000 updates, and without.

    python benchmarks/checkpoints.py

One process trains one model in blocks of 2,000 updates, with a checkpoint at the end of each
block and without in turn. Prints the median of each kind of block, their ratio round by round, how
long a checkpoint itself took, and what it wrote. Small networks make it dearer, as their updates
are quicker: `--hidden 16`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is loaded

from finflow_sb3.quiet import silence_gym_notice  # noqa: E402

silence_gym_notice()

from finflow_sb3.config import Settings  # noqa: E402
from finflow_sb3.config_files import resolve  # noqa: E402
from finflow_sb3.cqsac.cqsac import CQSAC  # noqa: E402
from finflow_sb3.opening import open_pinned  # noqa: E402
from finflow_sb3.results import Watch  # noqa: E402
from finflow_sb3.runs.checkpoints import CheckpointStore  # noqa: E402
from finflow_sb3.runs.metrics_log import MetricsLog  # noqa: E402
from finflow_sb3.training.callbacks import TrainingCallback  # noqa: E402
from finflow_sb3.training.finetune import prepare  # noqa: E402
from finflow_sb3.training.guard import Guard  # noqa: E402

NEVER = 10**9


def settings_of(hidden: int | None) -> Settings:
    """From scratch, with the networks of the packaged file or with small ones."""
    settings = resolve(algo="cqsac", environ={})
    changes: dict[str, Any] = {
        "offline_fraction": 0.0,
        "target_entropy": "auto",
        "cal_ql": False,
        "warmup_steps": 0,
        "n_timesteps": NEVER,
    }
    if hidden is not None:
        sizes = ("expert_hidden", "gate_hidden", "token_hidden")
        small = dict.fromkeys(sizes, hidden) | {"critic_hidden": [hidden, hidden]}
        changes["policy_kwargs"] = {**settings.cqsac.policy_kwargs, **small}
    run = {"checkpoint_interval": NEVER, "evaluate_interval": NEVER, "tensorboard": False}
    return settings.replace(cqsac=changes, run=run)


class Blocks:
    """One model that goes on learning, block after block."""

    def __init__(self, settings: Settings, folder: Path):
        settings, market = open_pinned(settings, None, Watch())
        self.model: CQSAC = prepare(settings, market)[0]
        self.log = MetricsLog(folder / "metrics.jsonl")
        guard = Guard(settings.monitor, self.model, self.log)
        self.store = CheckpointStore(folder / "checkpoints")
        self.callback = TrainingCallback(
            market, settings, self.log, guard, self.store, on_best=lambda _: None
        )
        self.n_envs, self.learned = settings.cqsac.n_envs, False

    def run(self, updates: int, save: bool) -> tuple[float, float]:
        """Seconds of a block, and of the checkpoint at its end (0 without)."""
        start = time.perf_counter()
        self.model.learn(
            updates * self.n_envs,
            callback=self.callback,
            log_interval=None,
            reset_num_timesteps=not self.learned,
        )
        self.learned = True
        before = time.perf_counter()
        if save:
            self.callback.checkpoint()
        end = time.perf_counter()
        return end - start, end - before if save else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as name:
        blocks = Blocks(settings_of(options.hidden), Path(name))
        blocks.run(50, save=True)
        found: dict[bool, list[float]] = {True: [], False: []}
        own = []
        for _ in range(options.rounds):
            for save in (True, False):
                seconds, checkpoint = blocks.run(options.updates, save)
                found[save].append(seconds)
                own += [checkpoint] if save else []
        newest = blocks.store.all()[-1]
        size = sum(path.stat().st_size for path in newest.iterdir())
        segments = sorted((newest.parent / "replay").iterdir(), key=lambda path: path.name)
        rate = options.updates / statistics.median(found[False])
        ratios = [a / b - 1.0 for a, b in zip(found[True], found[False], strict=True)]
        print(f"updates/s without checkpoints: {rate:.1f}")
        print(f"block with / without, s: {statistics.median(found[True]):.2f}", end=" / ")
        print(f"{statistics.median(found[False]):.2f}")
        print("difference by round: " + ", ".join(f"{ratio:+.2%}" for ratio in ratios))
        share = statistics.median(own) / statistics.median(found[False])
        print(f"a checkpoint: {statistics.median(own) * 1000:.0f} ms, {share:.2%} of a block")
        print(
            f"it wrote {size / 1e6:.1f} MB and {segments[-1].stat().st_size / 1e6:.1f} MB of replay"
        )


if __name__ == "__main__":
    main()
