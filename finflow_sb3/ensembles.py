"""Runs whose policies act together, and one run alone as the simplest case of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finflow_sb3.config import Settings
from finflow_sb3.envs.observations import Scaler
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.evaluation.backtest import Policy
from finflow_sb3.evaluation.ensemble import Combination, Ensemble, require_combination
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.pretrain.artefact import read_json, write_json
from finflow_sb3.run_notes import noted_market, same_prices
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.training.trained import TrainedPolicy, load_policy

__all__ = [
    "MEMBERS",
    "PLAN",
    "Policies",
    "Runs",
    "load_policies",
    "members_of",
    "new_ensemble",
    "write_members",
]

Runs = str | Path | Sequence[str | Path]
"""A run, or several; a folder of an ensemble stands for its members."""
MEMBERS = "members.json"
"""In an ensemble's folder: its runs, as paths from there, and how they are combined."""
PLAN = "ensemble.json"
"""In the folder of an ensemble that is being trained: its seeds, and which of them are done."""
OF_TRAINING = {
    "cvar_target",
    "episode_length",
    "initial_weights",
    "lambda_cvar",
    "lambda_dd",
    "lambda_turn",
    "reward",
    "reward_baseline",
    "ruin",
    "sharpe_decay",
}
"""What policies learned for may differ between members: it changes no decision and no account."""
OF_MOMENTS = {"reward", "reward_baseline", "sharpe_decay"}
"""What sets the moments of the differential Sharpe ratio, which policies trained for it observe."""
ONE_MARKET = "an ensemble is of runs in one market and environment"
OBSERVED = "give runs that have it the same: policies observe the moments of differential_sharpe"


@dataclass(frozen=True)
class Policies:
    """The trained policies of one or several runs, ready to act as one.

    Attributes
    ----------
    runs : folders, in the order in which they were given
    members : a policy of each
    settings : of the first run; all that concerns market and environment is the same in each
    policy : what backtests take: the run's own `act`, or an `Ensemble` of several
    """

    runs: tuple[Path, ...]
    members: tuple[TrainedPolicy, ...]
    settings: Settings
    combination: Combination
    shrinkage: float

    @property
    def together(self) -> bool:
        """Whether there is more to it than one policy's own decision."""
        return len(self.members) > 1 or self.shrinkage > 0.0

    @property
    def name(self) -> str:
        """Of its curve: the algorithm's, or "ensemble"."""
        return "ensemble" if len(self.members) > 1 else self.members[0].name

    @property
    def layout(self) -> ObservationLayout:
        return self.members[0].layout

    @property
    def scaler(self) -> Scaler:
        return self.members[0].scaler

    @property
    def ensemble(self) -> Ensemble:
        """The members together; of one run an ensemble of one."""
        scores = [score_of(member) for member in self.members]
        known = tuple(score for score in scores if score is not None)
        acts = tuple(member.act for member in self.members)
        return Ensemble(acts, self.combination, known, self.shrinkage)

    @property
    def unshrunk(self) -> Ensemble:
        """The members together as if they were trusted whatever they disagree by."""
        return replace(self.ensemble, shrinkage=0.0)

    @property
    def policy(self) -> Policy:
        return self.ensemble if self.together else self.members[0].act

    def on(self, layout: ObservationLayout) -> Policies:
        """The same policies on a universe of this layout, of any size; themselves on their own.

        Raises
        ------
        ArtefactError
            If networks are tied to their assets, or features or environment differ.
        """
        if layout.assets == self.layout.assets:
            layout.require_equal(self.layout, str(self.runs[0]))
            return self
        members = tuple(load_policy(run, layout) for run in self.runs)
        return dataclasses.replace(self, members=members)

    def facts(self) -> dict[str, Any]:
        """How they are combined, in words; the run's own facts where it is alone."""
        if not self.together:
            return self.members[0].facts
        how = {"runs": len(self.members), "combined by": self.combination}
        return {**how, "shrinkage": self.shrinkage} if self.shrinkage else how


def score_of(member: TrainedPolicy) -> float | None:
    """The validation Sharpe that a policy was kept for."""
    score = member.facts.get("validation", {}).get("sharpe")
    return None if score is None else float(score)


def load_policies(
    runs: Runs, combination: Combination | None = None, shrinkage: float | None = None
) -> Policies:
    """The best policies of these runs, to act as one.

    Parameters
    ----------
    runs : run folders, or the folder of an ensemble; one alone is its policy and nothing else
    combination, shrinkage : as for `Ensemble`; what an ensemble's folder says, else the mean
        without shrinkage, if not given

    Raises
    ------
    ArtefactError
        If a run holds no policy, or runs see different markets: other prices, splits, assets,
        costs or scalers. Then a test split of one may be a training split of another.
    ConfigError
        If they cannot be combined so, or it is said how to combine what is one run.
    """
    paths = members_of(runs)
    _require_several(paths, combination, shrinkage)
    noted = _noted(runs)
    combination = noted[0] if combination is None else combination
    shrinkage = noted[1] if shrinkage is None else shrinkage
    settings = [RunFolder.open(path).settings() for path in paths]
    members = tuple(load_policy(path) for path in paths)
    for path, own, member in zip(paths[1:], settings[1:], members[1:], strict=True):
        _require_same_settings(paths[0], settings[0], path, own)
        _require_same_market(paths[0], members[0], path, member)
    found = Policies(paths, members, settings[0], combination, shrinkage)
    _ = found.ensemble  # refuses what cannot be combined
    return found


def _require_several(
    paths: tuple[Path, ...], combination: Combination | None, shrinkage: float | None
) -> None:
    """Refuse what would have no effect on one run."""
    given = [("--combine", combination), ("--shrink", shrinkage)]
    for flag, value in given:
        if len(paths) == 1 and value is not None:
            raise ConfigError(f"{flag}: concerns several runs, and {paths[0]} is one; leave it out")


def _require_same_settings(first: Path, settings: Settings, path: Path, own: Settings) -> None:
    before, now = settings.as_dict(), own.as_dict()
    observed = "differential_sharpe" in (settings.env_kwargs.reward, own.env_kwargs.reward)
    free = OF_TRAINING - OF_MOMENTS if observed else OF_TRAINING
    # What the prices are called says little: their contents are compared.
    for section, may_differ in (("market", {"prices"}), ("env_kwargs", free)):
        for name, value in before[section].items():
            theirs = now[section][name]
            if name in may_differ or theirs == value:
                continue
            why = OBSERVED if observed and name in OF_MOMENTS else ONE_MARKET
            raise ArtefactError(
                f"{path}: has {section}.{name} {theirs!r}, and {first} {value!r}; {why}"
            )


def _require_same_market(
    first: Path, policy: TrainedPolicy, path: Path, member: TrainedPolicy
) -> None:
    member.layout.require_equal(policy.layout, str(path))
    if not same_prices(*(noted_market(RunFolder.open(run)) for run in (first, path))):
        raise ArtefactError(f"{path}: was trained on other prices than {first}; {ONE_MARKET}")
    if member.scaler != policy.scaler:
        raise ArtefactError(
            f"{path}: began on other prices or splits than {first} (their scalers differ); "
            f"{ONE_MARKET}"
        )


def members_of(runs: Runs) -> tuple[Path, ...]:
    """The runs that are meant, with folders of ensembles replaced by their members.

    Raises
    ------
    ConfigError
        If none is given, or one twice.
    ArtefactError
        If an ensemble's file is not whole.
    """
    given = [runs] if isinstance(runs, (str, Path)) else list(runs)
    found: list[Path] = []
    for each in map(Path, given):
        if (each / PLAN).is_file() and not (each / MEMBERS).is_file():
            raise ArtefactError(
                f"{each}: not all of its seeds are trained; go on with finflow train --resume "
                f"{each}"
            )
        found += _listed(each) if (each / MEMBERS).is_file() else [each]
    if not found:
        raise ConfigError("run: none is given; give the folder of a run, or several")
    for path in found:
        if [p.resolve() for p in found].count(path.resolve()) > 1:
            raise ConfigError(f"{path}: is given more than once; every run has one voice")
    return tuple(found)


def _listed(folder: Path) -> list[Path]:
    content = read_json(folder / MEMBERS)
    names = content.get("members")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise ArtefactError(f"{folder / MEMBERS}: lists no runs; give the runs themselves")
    return [folder / name for name in names]


def _noted(runs: Runs) -> tuple[Combination, float]:
    """How the runs are combined: as one folder of an ensemble says, else by the mean."""
    alone = [runs] if isinstance(runs, (str, Path)) else list(runs)
    path = Path(alone[0]) / MEMBERS
    content = read_json(path) if len(alone) == 1 and path.is_file() else {}
    combination, shrinkage = content.get("combination", "mean"), content.get("shrinkage", 0.0)
    try:
        require_combination(combination, shrinkage, ("combination", "shrinkage"))
    except ConfigError as error:
        raise ArtefactError(f"{path}: {error}; give the runs themselves") from None
    return combination, shrinkage


def new_ensemble(settings: Settings) -> RunFolder:
    """An empty folder for an ensemble, under `ensemble` beside those of algorithms."""
    folder = RunFolder.create(settings.run.log_dir, "ensemble", settings.env)
    folder.write_settings(settings)
    return folder


def write_members(
    folder: Path, runs: Sequence[Path], combination: Combination = "mean", shrinkage: float = 0.0
) -> None:
    """Have a folder stand for these runs; all may be moved together.

    Parameters
    ----------
    combination, shrinkage : how they are combined where nothing else is asked for
    """
    names = [os.path.relpath(path.resolve(), folder.resolve()) for path in runs]
    how = {"combination": combination, "shrinkage": shrinkage}
    write_json(folder / MEMBERS, {"members": names, **how})
