"""The hand-over from IQL to CQSAC: what the first online steps do to a seeded policy.

    python benchmarks/handover.py --out handover.jsonl
    python benchmarks/handover.py --out handover.jsonl --plot docs/images/handover.png

Each seed pretrains once, with its own data and networks. From there every variant fine-tunes
with the same seed, and is measured on the validation split (`evaluation.quick.validate`) at
the start and after 1,000, 2,000, 5,000 and 20,000 environment steps, counted over all portfolios:
one update for every 16 of them, the first after `learning_starts` or `warmup_steps`. They are the
first steps of a run of `n_timesteps`, whose schedules they follow. `naive` is SB3's start; the
other variants add remedies of `zoo_configs/cqsac.yml` to it, up to all of them, which is that
file as it stands. What they are not about (penalty, pull to the anchors' average, learning rates)
is the same for all variants of a panel.

A cell (panel, variant, seed) is one line of `--out`, written when it is done; what is there
already is not run again, so that a stopped run goes on and several processes can share a file
(each with seeds of its own). `--plot` draws what there is and prints tables: see
`handover_report.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is loaded

from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from finflow_sb3.quiet import silence_gym_notice  # noqa: E402

silence_gym_notice()

import numpy as np  # noqa: E402
from stable_baselines3.common.callbacks import BaseCallback  # noqa: E402

from finflow_sb3.config import Settings  # noqa: E402
from finflow_sb3.config_files import resolve  # noqa: E402
from finflow_sb3.cqsac.cqsac import CQSAC  # noqa: E402
from finflow_sb3.evaluation.quick import validate  # noqa: E402
from finflow_sb3.pipeline import Start, open_start, pretrain  # noqa: E402
from finflow_sb3.results import Watch  # noqa: E402
from finflow_sb3.training.finetune import prepare  # noqa: E402

POINTS = (0, 1_000, 2_000, 5_000, 20_000)

# What SB3 does with a policy that it knows nothing of.
NAIVE: dict[str, Any] = {
    "warmup_steps": 0,
    "offline_fraction": 0.0,
    "cal_ql": False,
    "alpha_init": None,
    "ent_coef": "auto",
    "target_entropy": "auto",
    "backup_entropy": True,
}
REMEDIES = {
    "warm-up": ("warmup_steps",),
    "mixing": ("offline_fraction",),
    "floor": ("cal_ql",),
    "small α": ("alpha_init", "ent_coef", "target_entropy", "backup_entropy"),
}
VARIANTS: dict[str, tuple[str, ...]] = {
    "naive": (),
    **{name: (name,) for name in REMEDIES},
    "all": tuple(REMEDIES),
    "all, α 0.75": tuple(REMEDIES),
}
PANELS: dict[str, dict[str, Any]] = {
    "packaged": {},
    "no pull": {"prior_coef": 0.0},
    "no pull, 4 updates": {"prior_coef": 0.0, "gradient_steps": 4},
}
LOGGED = ("ent_coef", "entropy", "q_mean", "critic_loss")

Record = dict[str, Any]


def settings_of(base: Settings, panel: str, variant: str) -> Settings:
    """`base` without the remedies that the variant does not have."""
    kept = {name for remedy in VARIANTS[variant] for name in REMEDIES[remedy]}
    changes = {name: value for name, value in NAIVE.items() if name not in kept}
    if variant == "all, α 0.75":
        changes["alpha_init"] = 0.75
    return base.replace(cqsac={**changes, **PANELS[panel]})


class Measure(BaseCallback):
    """Validates at the points, and ends the training at the last of them.

    A point is met at the first step at or after it, with the updates of all steps before.
    """

    def __init__(self, start: Start, points: Sequence[int]):
        super().__init__()
        self.start, self.due = start, list(points)
        self.found: list[Record] = []

    def _on_training_start(self) -> None:
        self._measure()

    def _on_step(self) -> bool:
        self._measure()
        return bool(self.due)

    def _measure(self) -> None:
        if not self.due or self.num_timesteps < self.due[0]:
            return
        model: Any = self.model
        figures = validate(
            self.start.market,
            self.start.settings.env_kwargs,
            lambda seen: np.asarray(model.predict(seen, deterministic=True)[0]),
        )
        logged = model.logger.name_to_value
        found = {k: float(logged[f"train/{k}"]) for k in LOGGED if f"train/{k}" in logged}
        steps = {"point": self.due.pop(0), "step": self.num_timesteps}
        self.found.append({**steps, "updates": int(model._n_updates), **figures, **found})


def cell(settings: Settings, run: Path, points: Sequence[int]) -> list[Record]:
    """Fine-tune from a pretraining run to the last point; figures of each."""
    start = open_start(settings, run, None, Watch())
    model: CQSAC = prepare(start.settings, start.market, start.artefact, start.data)[0]
    measure = Measure(start, points)
    # The whole length, so that schedules are those of the run that these steps are the start of.
    model.learn(settings.cqsac.n_timesteps, callback=measure, log_interval=None)
    return measure.found


# ---------------------------------------------------------------- the file of results


def read(path: Path) -> list[Record]:
    """Every line; of a cell that two processes measured at the same time, the last."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return list({(r["panel"], r.get("variant"), r["seed"]): r for r in records}.values())


def append(path: Path, record: Record) -> None:
    """One write of one line: processes that share the file do not mix theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def digest(settings: Settings, points: Sequence[int]) -> str:
    """What a line was measured with, but for where its runs are."""
    flat = {k: v for k, v in settings.flat().items() if k != "run.log_dir"}
    content = json.dumps([flat, list(points)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def known(path: Path, key: Record, mark: str) -> Record | None:
    """The line with this key, None where there is none; one with other settings is refused."""
    for record in read(path):
        if all(record.get(name) == value for name, value in key.items()):
            if record["settings"] != mark:
                raise SystemExit(f"{path}: {key} has other settings there; use another file")
            return record
    return None


def pretrained(base: Settings, out: Path) -> Path:
    """The pretraining run of a seed, made if it is not in the file yet."""
    key, mark = {"panel": None, "seed": base.run.seed}, digest(base, ())
    record = known(out, key, mark)
    if record is None:
        done = pretrain(base)
        if not done.finished:
            raise SystemExit(f"{done.run}: stopped; start again to pretrain anew")
        figures = {"validation": done.validation, "untrained": done.untrained}
        run = os.path.relpath(done.run, out.parent)
        record = {**key, "settings": mark, "run": run, "epoch": done.best_epoch, **figures}
        append(out, record)
    return out.parent / str(record["run"])


def run_all(
    base: Settings,
    out: Path,
    seeds: Sequence[int],
    panels: Sequence[str] = ("packaged", "no pull"),
    variants: Sequence[str] = tuple(VARIANTS),
    points: Sequence[int] = POINTS,
) -> None:
    """Every cell that is not in `out` yet, seed by seed."""
    for seed in seeds:
        logs = str(out.with_suffix("") / f"seed_{seed}")
        seeded = base.replace(run={"seed": seed, "log_dir": logs, "tensorboard": False})
        run = pretrained(seeded, out)
        for panel in panels:
            for variant in variants:
                settings = settings_of(seeded, panel, variant)
                key = {"panel": panel, "variant": variant, "seed": seed}
                mark = digest(settings, points)
                if known(out, key, mark) is not None:
                    continue
                begin = time.perf_counter()
                found = cell(settings, run, points)
                append(out, {**key, "settings": mark, "points": found})
                took = time.perf_counter() - begin
                last = f"{found[0]['annual_return']:.2%} to {found[-1]['annual_return']:.2%}"
                print(f"{panel}, {variant}, seed {seed}: {last}, {took:.0f} s", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("handover.jsonl"), help="lines of results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=POINTS[-1], help="environment steps in all")
    parser.add_argument("--panels", nargs="+", default=list(PANELS)[:2], choices=list(PANELS))
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--param", "-p", action="append", default=[], help="as finflow's")
    parser.add_argument("--plot", type=Path, help="run nothing, draw this PNG, print the tables")
    options = parser.parse_args()
    if options.plot is not None:
        from handover_report import draw, tables

        print(tables(read(options.out)))
        draw(read(options.out), options.plot)
        return
    base = resolve(algo="cqsac", params=options.param, environ={})
    points = [*(point for point in POINTS if point < options.steps), options.steps]
    run_all(base, options.out.resolve(), options.seeds, options.panels, options.only, points)


if __name__ == "__main__":
    main()
