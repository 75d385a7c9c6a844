"""What a study came to, on disk: the best settings as YAML, a table of all trials, pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from finflow_sb3.config import Settings
from finflow_sb3.files import write_whole
from finflow_sb3.tuning.pictures import draw_study
from finflow_sb3.tuning.recipe import training_command, write_recipe
from finflow_sb3.tuning.spaces import Space, Values
from finflow_sb3.tuning.trials import TrialPlan
from finflow_sb3.tuning.workers import DEFAULT

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
    default : the same of the settings as they were, which are tried first
    best : number of that trial; with several objectives the best by the first of them
    settings : its values by `section.name`
    train : the command that trains with them
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
    train: str = ""
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
            _forget_beaten(out / "front", front)
        files += draw_study(study, plan.objectives, list(space.ranges), out)
    first = next((t for t in complete if t.user_attrs.get(DEFAULT)), None)
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
        train="" if best is None else training_command(plan, out / BEST),
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
    reached = ", ".join(f"{k} {v:.4f}" for k, v in _named(trial, plan).items())
    title = (
        f"Trial {trial.number} of {tried}: {reached} on validation, mean of {plan.seeds} seed(s) "
        f"and {len(plan.folds)} fold(s)."
    )
    write_recipe(path, title, plan, settings, trial.params, tried)
    return path


def _forget_beaten(folder: Path, front: list[FrozenTrial]) -> None:
    """Remove the files of trials that have left the front since."""
    kept = {f"trial_{trial.number}.yml" for trial in front}
    for path in folder.glob("trial_*.yml"):
        if path.name not in kept:
            path.unlink(missing_ok=True)  # another worker may be at it
