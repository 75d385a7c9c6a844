"""The report of a backtest: a self-contained fact sheet, its numbers and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from finflow_sb3.config_evaluation import EvaluationSettings
from finflow_sb3.errors import DataError
from finflow_sb3.evaluation import plots
from finflow_sb3.evaluation.allocators import ALLOCATORS
from finflow_sb3.evaluation.analysis import Analysis, analyse
from finflow_sb3.evaluation.break_even import BreakEven
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import measures
from finflow_sb3.evaluation.plot_style import png_bytes
from finflow_sb3.evaluation.ranking import Ranking
from finflow_sb3.evaluation.report_charts import ROLLING
from finflow_sb3.evaluation.report_json import metrics_json
from finflow_sb3.evaluation.report_page import render
from finflow_sb3.files import write_whole

__all__ = ["Found", "ReportInput", "ReportMarket", "ReportPaths", "Verdict", "write_report"]

WIDE = 10.0


@dataclass(frozen=True)
class ReportMarket:
    """What was traded: where prices come from, assets, first and last day.

    ``survivorship`` is the warning to print where the universe was chosen afterwards, else None.
    """

    source: str
    assets: tuple[str, ...]
    first: str
    last: str
    survivorship: str | None = None


@dataclass(frozen=True)
class ReportInput:
    """Everything that a report shows.

    Attributes
    ----------
    title : heading of the page
    run : name of the run
    market : what was traded
    splits : "train", "validation", "test" → (first day, last day), as ISO dates
    policy : the policy's curves on the test split, one for each execution lag, lag 0 among them
    baselines : curves of the rules beside it, any lags; equal_weight at lag 0 among them
    settings : the resolved configuration (`Settings.as_dict()`)
    command : the command line that makes this report again
    cash_rate : simple daily rate on each day of the curves, shape [D]; None stands for 0
    notes : remarks, one sentence each
    extra : further facts, name → value
    pretraining : its best epochs, judged without a market; None where they were not
    analysis : the policy's at lag 0 beside the baselines of that lag; None makes it with the
        default `EvaluationSettings`
    break_even : fees at which the policy's edge is gone, by lag and measure
    """

    title: str
    run: str
    market: ReportMarket
    splits: Mapping[str, tuple[str, str]]
    policy: tuple[Curve, ...]
    baselines: tuple[Curve, ...]
    settings: Mapping[str, Any]
    command: str
    cash_rate: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    pretraining: Ranking | None = None
    analysis: Analysis | None = None
    break_even: tuple[BreakEven, ...] = ()

    def __post_init__(self) -> None:
        lags = [c.execution_lag for c in self.policy]
        if 0 not in lags or len(set(lags)) != len(lags):
            raise DataError(f"report: policy curves have lags {lags}; give one a lag, 0 included")
        if not any(c.name == "equal_weight" and c.execution_lag == 0 for c in self.baselines):
            raise DataError("report: no equal_weight curve at lag 0; add it to the baselines")
        names = [(c.name, c.execution_lag) for c in (*self.policy, *self.baselines)]
        if len(set(names)) != len(names):
            name, lag = next(n for n in names if names.count(n) > 1)
            raise DataError(f"report: {name} at lag {lag} stands twice; give each curve a name")
        for split in self.splits:
            try:
                np.array(self.splits[split], dtype="datetime64[D]")
            except ValueError:
                raise DataError(
                    f"report: {split} split {self.splits[split]} holds no two dates; "
                    "write them as 2020-12-31"
                ) from None
        days = self.policy[0].dates
        for curve in (*self.policy, *self.baselines):
            if not np.array_equal(curve.dates, days):
                raise DataError(
                    f"report: {curve.name} at lag {curve.execution_lag} has other days than the "
                    "policy; backtest every curve on the same split"
                )

    def at_lag(self, lag: int) -> list[Curve]:
        """The curves of one lag, the policy's first."""
        return [c for c in (*self.policy, *self.baselines) if c.execution_lag == lag]


@dataclass(frozen=True)
class SharpeDifference:
    """Sharpe ratio of one curve minus that of another, with its uncertainty.

    Attributes
    ----------
    difference : annual Sharpe ratio of the first minus that of the second
    low, high : ends of the interval; nan where there are too few days to tell
    level : probability that the interval is meant to hold, in percent
    block, draws : mean days in a block of the bootstrap, and how often it was drawn
    """

    difference: float
    low: float
    high: float
    level: int
    block: int
    draws: int


@dataclass(frozen=True)
class Verdict:
    """How the policy did against equal weight on the test split, net of costs, at lag 0.

    ``outcome`` is "better", "worse" or "cannot be told".
    """

    headline: str
    sentence: str
    sharpe: SharpeDifference
    outcome: str


@dataclass(frozen=True)
class Found:
    """What was found out about the curves of a report.

    Attributes
    ----------
    measures : of each curve, by its name and execution lag
    analysis : of the policy at lag 0
    verdict : that of the analysis, with the difference that it rests on
    """

    measures: Mapping[tuple[str, int], Mapping[str, float]]
    analysis: Analysis
    verdict: Verdict


@dataclass(frozen=True)
class ReportPaths:
    """What `write_report` wrote, and what it found."""

    index: Path
    metrics: Path
    pictures: tuple[Path, ...]
    verdict: Verdict


def write_report(report: ReportInput, folder: Path) -> ReportPaths:
    """Write ``index.html``, ``metrics.json`` and the pictures into `folder`.

    The page needs no network and no other file; its charts need JavaScript, its tables do not. All
    of it is made before any of it is written,
    each file is written whole, and the same input gives the same bytes.

    Raises
    ------
    StorageError
        If the folder cannot be written.
    DataError
        If a curve has no days or holds a return that is not a number.
    """
    found = _find(report)
    files = {f"{name}.png": png_bytes(figure) for name, figure in _pictures(report).items()}
    files["metrics.json"] = metrics_json(report, found)
    files["index.html"] = render(report, found).encode()
    for name, data in files.items():
        write_whole(folder / name, data)
    pictures = tuple(folder / name for name in files if name.endswith(".png"))
    return ReportPaths(folder / "index.html", folder / "metrics.json", pictures, found.verdict)


def _find(report: ReportInput) -> Found:
    found = {
        (c.name, c.execution_lag): measures(c, report.cash_rate)
        for c in (*report.policy, *report.baselines)
    }
    analysis = report.analysis
    if analysis is None:
        policy, *others = report.at_lag(0)
        analysis = analyse(policy, others, report.cash_rate, EvaluationSettings())
    gap = analysis.intervals[0].difference
    if gap is None:
        raise DataError("report: the analysis begins with equal_weight; analyse the policy")
    sharpe = SharpeDifference(
        gap.value, gap.low, gap.high, gap.level, analysis.block, analysis.draws
    )
    said = analysis.verdict
    verdict = Verdict(said.headline, said.sentence, sharpe, said.outcome)
    return Found(found, analysis, verdict)


def _pictures(report: ReportInput) -> dict[str, Figure]:
    """Pictures beside the page, for other documents and for readers without scripts."""
    # A dozen allocators more would hide the lines; they have their rows in the table.
    curves = [c for c in report.at_lag(0) if c.name not in ALLOCATORS]
    policy = curves[0]
    few = [policy] + [c for c in curves[1:] if not c.name.startswith(("anchor: ", "member "))]
    out = {
        "equity": plots.equity_plot(curves, WIDE),
        "drawdown": plots.drawdown_plot(few, WIDE),
    }
    if len(policy) > ROLLING:
        out["rolling_sharpe"] = plots.rolling_sharpe_plot(few, WIDE, ROLLING)
    out["weights"] = plots.weights_plot(policy, WIDE)
    if policy.gates is not None:
        out["gates"] = plots.gates_plot(policy, WIDE)
    return out
