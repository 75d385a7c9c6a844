"""What the verbs of the pipeline return, and how they tell of their progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finflow_sb3.cqsac.seeding import SeedReport
from finflow_sb3.evaluation.break_even import BreakEven
from finflow_sb3.evaluation.ranking import Ranking
from finflow_sb3.pretrain.run import Epoch
from finflow_sb3.training.monitor import Event

__all__ = ["Backtested", "Collected", "Evaluated", "Finetuned", "Pretrained", "Trained", "Watch"]


class Watch:
    """What a caller may want to hear of while a stage runs; override what is of use."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of a stage (refits, episodes, steps) are done."""

    def started(self, run: Path) -> None:
        """A run begins to write into this folder; `metrics.jsonl` grows in it."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch of pretraining has ended."""

    def validated(self, step: int, figures: dict[str, float]) -> None:
        """A policy that trains online was backtested on the validation split after `step` steps."""

    def seeded(self, report: SeedReport) -> None:
        """CQSAC was seeded."""

    def warned(self, event: Event) -> None:
        """The stability monitor warned."""

    def remark(self, text: str) -> None:
        """Something worth a line."""


@dataclass(frozen=True)
class Collected:
    """A dataset on disk, and how each rule did: (episodes, mean reward, mean distance).

    Attributes
    ----------
    prices : that it was collected on, as settings name them
    transitions_of : number of transitions by behaviour
    """

    path: Path
    prices: str
    transitions: int
    episodes: int
    behaviours: dict[str, tuple[int, float, float]]
    transitions_of: dict[str, int]


@dataclass(frozen=True)
class Pretrained:
    """A pretraining run.

    Attributes
    ----------
    steps : gradient steps done
    finished : False where it was stopped before its end
    dataset : its file; as it was named, where it has no market
    best_epoch, validation : of what `best/` holds; None and empty before the first epoch ended.
        Without a market the last epoch, or the best by fitted Q evaluation, and its losses on
        held-out episodes
    untrained : the zero action's validation figures; empty without a market
    fqe : the best epochs by fitted Q evaluation, where `fqe_epochs` asks for it
    """

    run: Path
    dataset: Path | str | None
    steps: int
    finished: bool
    best_epoch: int | None
    validation: dict[str, float]
    untrained: dict[str, float]
    fqe: Ranking | None = None


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuning run.

    Attributes
    ----------
    finished : False where it was stopped before its end; an early stop for want of improvement
        is one
    best : validation Sharpe of what `best/` holds
    stopped : why the stability monitor stopped it, None where it did not
    stability : by check its level, last and worst figure, warnings, and actions by kind
    """

    run: Path
    steps: int
    finished: bool
    best: float | None
    validation: dict[str, float]
    seeded: dict[str, int] | None
    stopped: str | None = None
    stability: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """Test figures of a run: name of the curve → "lag_0" and "lag_1" → measures.

    `policy` is the name of the run's own curve.

    Attributes
    ----------
    dates : first and last day of the returns
    break_even : fees at which the policy's edge over equal weight is gone, by lag and measure
    notes : what a reader has to know of the baselines, one sentence each
    """

    run: Path
    policy: str
    report: Path
    verdict: str
    dates: tuple[str, str]
    measures: dict[str, dict[str, dict[str, float]]]
    break_even: tuple[BreakEven, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Backtested:
    """Figures of rules without a trained policy: name of the curve → "lag_0", "lag_1" → measures.

    Attributes
    ----------
    prices : that they traded, as settings name them
    split : the period
    dates : first and last day of its returns
    notes : what a reader has to know of the rules, one sentence each
    """

    prices: str
    split: str
    dates: tuple[str, str]
    measures: dict[str, dict[str, dict[str, float]]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """Results of the stages that ran."""

    pretrained: Pretrained | None
    finetuned: Finetuned | None
    evaluated: Evaluated | None
