"""The same training with several seeds, whose policies then act together."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from finflow_sb3.config import OFFLINE_ALGORITHMS, OfflineAlgorithm, Settings
from finflow_sb3.ensembles import PLAN, new_ensemble, write_members
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.evaluate_run import evaluate
from finflow_sb3.evaluation.ensemble import Combination, require_combination
from finflow_sb3.files import present
from finflow_sb3.messages import shown
from finflow_sb3.offline.own_rules import GivenRule
from finflow_sb3.pipeline import Mode, train
from finflow_sb3.pretrain.artefact import read_json, write_json
from finflow_sb3.results import Evaluated, Trained, Watch
from finflow_sb3.resuming import continue_training
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.status import read_status

__all__ = ["TrainedEnsemble", "continue_ensemble", "is_ensemble", "train_ensemble"]


@dataclass(frozen=True)
class TrainedEnsemble:
    """Runs that differ in their seed alone.

    Attributes
    ----------
    run : the ensemble's folder, which stands for its members
    seeds : of all members, trained or not
    members : runs that have come to their end
    unfinished : the run that was stopped, if one was
    """

    run: Path
    seeds: tuple[int, ...]
    members: tuple[Path, ...]
    unfinished: Path | None = None
    evaluated: Evaluated | None = None

    @property
    def finished(self) -> bool:
        return len(self.members) == len(self.seeds)


@dataclass
class _Member:
    """What is known of one seed: the runs that it began, and whether the last has ended."""

    seed: int
    runs: list[str] = dataclasses.field(default_factory=list)
    finished: bool = False

    @property
    def sound(self) -> bool:
        """Whether each value is of its type; one that has finished has a run."""
        runs: Any = self.runs
        listed = isinstance(runs, list) and all(isinstance(run, str) for run in runs)
        typed = type(self.seed) is int and type(self.finished) is bool
        return listed and typed and (bool(runs) or not self.finished)


@dataclass
class _Plan:
    """What is to be trained and what has been, as it stands in the ensemble's folder."""

    mode: Mode
    offline_algo: OfflineAlgorithm
    dataset: str | None
    combination: Combination
    shrinkage: float
    members: list[_Member]

    def write(self, folder: Path) -> None:
        write_json(folder / PLAN, dataclasses.asdict(self))


def train_ensemble(
    settings: Settings,
    seeds: int,
    mode: Mode = "full",
    dataset: str | Path | None = None,
    watch: Watch | None = None,
    offline_algo: OfflineAlgorithm = "iql",
    *,
    behaviours: Sequence[GivenRule] = (),
    combination: Combination = "mean",
    shrinkage: float = 0.0,
) -> TrainedEnsemble:
    """`pipeline.train` with seeds from `run.seed` on, and the evaluation of all together.

    The folder that it makes says what is done: `continue_ensemble` goes on after any stop.

    Parameters
    ----------
    seeds : how many, at least 2
    mode, dataset, offline_algo, behaviours : as for `train`
    combination, shrinkage : how the members act together, see `Ensemble`

    Raises
    ------
    ConfigError
        If there are fewer than two seeds, or policies are not combined so; and as `train` does.
    """
    if seeds < 2:
        raise ConfigError(f"--seeds: {seeds} is no ensemble; give 2 or more, or leave it out")
    require_combination(combination, shrinkage)
    first = settings.run.seed
    folder = new_ensemble(settings)
    plan = _Plan(
        mode=mode,
        offline_algo=offline_algo,
        dataset=None if dataset is None else str(Path(dataset).resolve()),
        combination=combination,
        shrinkage=shrinkage,
        members=[_Member(first + i) for i in range(seeds)],
    )
    plan.write(folder.path)
    try:
        return _trained(folder, plan, watch or Watch(), behaviours)
    except BaseException:
        if not any(member.runs for member in plan.members):
            shutil.rmtree(folder.path, ignore_errors=True)  # there is nothing to go on from
        raise


def continue_ensemble(
    run: str | Path, watch: Watch | None = None, *, behaviours: Sequence[GivenRule] = ()
) -> TrainedEnsemble:
    """Go on with what `train_ensemble` left: the member that was stopped, then the rest.

    Raises
    ------
    ArtefactError
        If the folder's plan is not whole.
    """
    folder = RunFolder.open(run)
    return _trained(folder, _read(folder.path), watch or Watch(), behaviours)


def is_ensemble(run: str | Path) -> bool:
    """Whether `continue_ensemble` is what goes on with this folder."""
    return (Path(run) / PLAN).is_file()


def _trained(
    folder: RunFolder, plan: _Plan, watch: Watch, behaviours: Sequence[GivenRule]
) -> TrainedEnsemble:
    settings = folder.settings()
    seeds = tuple(member.seed for member in plan.members)
    for member in plan.members:
        if member.finished:
            continue
        noting = _Noting(watch, folder.path, plan, member)
        own = settings.replace(run={"seed": member.seed})
        watch.remark(f"Seed {member.seed}, {seeds.index(member.seed) + 1} of {len(seeds)}:")
        last, finished = _train_member(folder.path, plan, member, own, noting, behaviours)
        if not finished:
            return TrainedEnsemble(folder.path, seeds, _ended(folder.path, plan), last)
        member.runs, member.finished = [_from(folder.path, last)], True
        plan.write(folder.path)
    members = _ended(folder.path, plan)
    write_members(folder.path, members, plan.combination, plan.shrinkage)
    evaluated = evaluate(folder.path, watch=watch)
    return TrainedEnsemble(folder.path, seeds, members, None, evaluated)


def _train_member(
    folder: Path,
    plan: _Plan,
    member: _Member,
    settings: Settings,
    watch: Watch,
    behaviours: Sequence[GivenRule],
) -> tuple[Path, bool]:
    """Go on with the member's last run that has something to go on from, or begin.

    Returns
    -------
    its last run, and whether that has come to its end
    """
    for name in reversed(member.runs):
        run = folder / name
        if _is_at_its_end(run):
            return run, True
        if any((run / "checkpoints").glob("*")):
            found = continue_training(run, watch, behaviours=behaviours, report=False)
            # It says nothing of pretraining that was complete, with nothing to follow it.
            return _last(found) or (run, True)
    member.runs = []
    begun = train(
        settings,
        plan.mode,
        plan.dataset,
        watch,
        plan.offline_algo,
        behaviours=behaviours,
        report=False,
    )
    last = _last(begun)
    assert last is not None
    return last


def _last(trained: Trained) -> tuple[Path, bool] | None:
    """The last run of what was trained, and whether it has come to its end."""
    stage = trained.finetuned or trained.pretrained
    return None if stage is None else (stage.run, stage.finished)


def _is_at_its_end(run: Path) -> bool:
    """Whether this is a fine-tuning that has ended; going on would train one further that ended
    early, for want of improvement.
    """
    folder = RunFolder(run)
    status = read_status(folder.status)
    if status is None or status.stage != "fine-tuning" or status.state != "finished":
        return False
    # A run that keeps no best writes its policy after that, and may have been killed before.
    return present(folder.best).is_dir() or present(folder.last).is_dir()


class _Noting(Watch):
    """Passes everything on, and notes each run of a member in the plan as it starts."""

    def __init__(self, watch: Watch, folder: Path, plan: _Plan, member: _Member):
        self.watch, self.folder, self.plan, self.member = watch, folder, plan, member
        # Whatever a watch may hear; a list of names would leave out what is added to it later.
        for name in vars(Watch):
            if not name.startswith("_") and name != "started":
                setattr(self, name, getattr(watch, name))

    def started(self, run: Path) -> None:
        name = _from(self.folder, run)
        if name not in self.member.runs:
            self.member.runs.append(name)
            self.plan.write(self.folder)
        self.watch.started(run)


def _ended(folder: Path, plan: _Plan) -> tuple[Path, ...]:
    return tuple(folder / member.runs[-1] for member in plan.members if member.finished)


def _from(folder: Path, run: Path) -> str:
    return os.path.relpath(run.resolve(), folder.resolve())


def _read(folder: Path) -> _Plan:
    content: dict[str, Any] = read_json(folder / PLAN)
    try:
        members = [_Member(**member) for member in content.pop("members")]
        plan = _Plan(members=members, **content)
        _require_sound(plan)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ArtefactError(
            f"{folder / PLAN}: is not whole ({error}); train the missing seeds by themselves, and "
            "give all runs to finflow evaluate"
        ) from None
    return plan


def _require_sound(plan: _Plan) -> None:
    """Refuse values that `_Plan.write` never writes.

    Raises
    ------
    ConfigError
        Naming the first of them.
    """
    if plan.mode not in get_args(Mode):
        raise ConfigError(f"mode: {shown(plan.mode)} is not one of {', '.join(get_args(Mode))}")
    if plan.offline_algo not in OFFLINE_ALGORITHMS:
        known = ", ".join(OFFLINE_ALGORITHMS)
        raise ConfigError(f"offline_algo: {shown(plan.offline_algo)} is not one of {known}")
    if not isinstance(plan.dataset, (str, type(None))):
        raise ConfigError(f"dataset: {shown(plan.dataset)} is no path")
    require_combination(plan.combination, plan.shrinkage, ("combination", "shrinkage"))
    if not plan.members or not all(member.sound for member in plan.members):
        raise ConfigError("members: is no list of seeds with their runs")
