"""Settings that `finflow tune` found against those it started from, with seeds new to both.

    python benchmarks/tuned.py --tuned logs/tune/…/best.yml [--pretrained RUN] [-c FILE]
        [-p KEY:VALUE] [--seeds 5]

Both are trained with the same seeds, which no trial had, and judged as trials are: by the chosen
policy on the validation split, net of costs. Prints the settings in which they differ, and a
Markdown table with the difference seed by seed, its mean and a 95 % interval of it (Student's t
over seeds). The file holds all that the study was given: give it here too, as with
`-p n_timesteps:3024`, or the default lacks it. Test days have no part in it.
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
from scipy import stats  # noqa: E402

from finflow_sb3.config import Settings  # noqa: E402
from finflow_sb3.config_files import diff, read_config, resolve  # noqa: E402
from finflow_sb3.pipeline import finetune, pretrain  # noqa: E402
from finflow_sb3.tuning.trials import validation_measures  # noqa: E402


def validation(settings: Settings, seed: int, pretrained: Path | None) -> float:
    """Validation Sharpe of one training."""
    with tempfile.TemporaryDirectory() as logs:
        run = {"seed": seed, "log_dir": logs, "tensorboard": False, "threads": 1}
        settings = settings.replace(run=run)
        start = pretrained or pretrain(settings).run
        return validation_measures(finetune(settings, start).run)["sharpe"]


def differing(default: Settings, tuned: Settings) -> list[str]:
    """Settings of the tuned training that the default one has otherwise."""
    return [
        f"{name} {value}"
        for name, _, value in diff(default, tuned)
        if not name.startswith(("run.", "evaluation."))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tuned", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path)
    parser.add_argument("-c", "--config", type=Path, action="append", default=[])
    parser.add_argument("-p", "--param", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=1000, help="first seed")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: an interval needs two seeds at least")
    base = None if options.pretrained is None else read_config(options.pretrained / "config.yml")
    files, params = options.config, options.param
    default = resolve(algo="cqsac", base=base, files=files, params=params)
    tuned = resolve(algo="cqsac", base=base, files=[*files, options.tuned], params=params)
    # What was given for both in another place than here shows as a difference of the two.
    print(f"Tuned: {', '.join(differing(default, tuned))}\n")
    rows = []
    print("| seed | default | tuned | difference |")
    print("|---|---|---|---|", flush=True)
    for seed in range(options.first, options.first + options.seeds):
        pair = [validation(each, seed, options.pretrained) for each in (default, tuned)]
        rows.append(pair)
        print(f"| {seed} | {pair[0]:.4f} | {pair[1]:.4f} | {pair[1] - pair[0]:+.4f} |", flush=True)
    found = np.array(rows)
    difference = found[:, 1] - found[:, 0]
    low, high = stats.t.interval(
        0.95, len(difference) - 1, difference.mean(), stats.sem(difference)
    )
    mean = found.mean(axis=0)
    interval = f"{difference.mean():+.4f} ({low:+.4f} … {high:+.4f})"
    print(f"| mean | {mean[0]:.4f} | {mean[1]:.4f} | {interval} |")


if __name__ == "__main__":
    main()
