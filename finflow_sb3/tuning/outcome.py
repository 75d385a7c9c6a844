"""What a study came to, on disk: the best settings as YAML, a table of all trials, pictures."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from finflow_sb3.config import Settings
from finflow_sb3.config_keys import PLAIN_ALGORITHMS
from finflow_sb3.files import write_whole
from finflow_sb3.tuning.pictures import draw_study
from finflow_sb3.tuning.spaces import Space, Values
from finflow_sb3.tuning.trials import TrialPlan
from finflow_sb3.zoo_values import dump_yaml

__all__ = ["Tuned", "write_outcome"]

BEST = "best.yml"


@dataclass(frozen=True)
class Tuned:
    """A study and its best settings.

    Attributes
    ----------
    study, storage : its name, and where it is kept
    out : folder of what is written
    finished, pruned, failed : numbers of trials; `finished` counts complete and pruned ones
    values : objectives of the best trial by name, means over seeds and folds; empty before one
        is complete
    default : the same of the first trial, the settings as they were
    best : number of that trial; with several objectives the best by the first of them
    settings : its values by `section.name`
    front : numbers of the trials that no other beats in all objectives
    files : `best.yml`, tables and pictures
    """

    study: str
    storage: str
    out: Path
    finished: int
    pruned: int
    failed: int
    objectives: tuple[str, ...]
    best: int | None = None
    values: dict[str, float] = field(default_factory=dict)
    default: dict[str, float] = field(default_factory=dict)
    settings: Values = field(default_factory=dict)
    front: tuple[int, ...] = ()
    files: tuple[Path, ...] = ()


def write_outcome(
    study: optuna.Study,
    plan: TrialPlan,
    space: Space,
    settings: Settings,
    out: Path,
    storage: str,
) -> Tuned:
    """Write what the study knows by now, and return it."""
    trials = study.get_trials(deepcopy=False)
    count = {state: sum(t.state == state for t in trials) for state in TrialState}
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    files = [_table(study, out)]
    front = _front(study, complete)
    best = max(front, key=lambda t: t.values[0], default=None)
    tried = count[TrialState.COMPLETE] + count[TrialState.PRUNED]
    if best is not None:
        files.append(_write(best, plan, settings, tried, out / BEST))
        if len(plan.objectives) > 1:
            files += [
                _write(t, plan, settings, tried, out / "front" / f"trial_{t.number}.yml")
                for t in front
            ]
        files += draw_study(study, plan.objectives, list(space.ranges), out)
    first = next((t for t in complete if t.number == 0), None)
    return Tuned(
        study=study.study_name,
        storage=storage,
        out=out,
        finished=tried,
        pruned=count[TrialState.PRUNED],
        failed=count[TrialState.FAIL],
        objectives=plan.objectives,
        best=None if best is None else best.number,
        values=_named(best, plan),
        default=_named(first, plan),
        settings={} if best is None else dict(best.params),
        front=tuple(t.number for t in front),
        files=tuple(files),
    )


def _front(study: optuna.Study, complete: list[FrozenTrial]) -> list[FrozenTrial]:
    if not complete:
        return []
    return [study.best_trial] if len(study.directions) == 1 else list(study.best_trials)


def _named(trial: FrozenTrial | None, plan: TrialPlan) -> dict[str, float]:
    return {} if trial is None else dict(zip(plan.objectives, trial.values, strict=True))


def _table(study: optuna.Study, out: Path) -> Path:
    kept = ("number", "value", "params", "state", "datetime_start", "duration")
    table = study.trials_dataframe(attrs=kept)
    write_whole(out / "trials.csv", table.to_csv(index=False).encode())
    return out / "trials.csv"


def _write(trial: FrozenTrial, plan: TrialPlan, settings: Settings, tried: int, path: Path) -> Path:
    """A trial's settings as a file for `-c`, with what was changed alone."""
    content: dict[str, Any] = {}
    for name, value in trial.params.items():
        section, _, own = name.partition(".")
        if section in PLAIN_ALGORITHMS:
            content[own] = value
        else:
            content.setdefault(section, {})[own] = value
    # A best of many looks better than it is: the deflated Sharpe ratio has to know of how many.
    content["evaluation"] = {"trials": tried}
    reached = ", ".join(f"{k} {v:.4f}" for k, v in _named(trial, plan).items())
    lines = (
        f"# Trial {trial.number} of {tried}: {reached} on validation, mean of {plan.seeds} "
        f"seed(s) and {len(plan.folds)} fold(s).",
        f"# {' '.join(['finflow', *sys.argv[1:]])}" if "finflow" in sys.argv[0] else "",
    )
    head = "".join(f"{line}\n" for line in lines if line)
    write_whole(path, f"{head}{dump_yaml({settings.env: content})}".encode())
    return path
