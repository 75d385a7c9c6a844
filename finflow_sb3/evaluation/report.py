"""The report of a backtest: one self-contained page, its numbers and its pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation import plots
from finflow_sb3.evaluation.allocators import ALLOCATORS
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import SharpeDifference, measures, sharpe_difference
from finflow_sb3.evaluation.plot_style import label, png_bytes
from finflow_sb3.evaluation.ranking import Ranking
from finflow_sb3.evaluation.report_page import number, render
from finflow_sb3.evaluation.report_template import picture
from finflow_sb3.files import write_whole

__all__ = ["ReportInput", "ReportMarket", "ReportPaths", "Verdict", "write_report"]

WIDE, NARROW = 10.0, 4.6
ROLLING = 126
SAME = 0.05


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
class Verdict:
    """How the policy did against equal weight on the test split, net of costs, at lag 0."""

    headline: str
    sentence: str
    sharpe: SharpeDifference


@dataclass(frozen=True)
class ReportPaths:
    """What `write_report` wrote, and what it found."""

    index: Path
    metrics: Path
    pictures: tuple[Path, ...]
    verdict: Verdict


def write_report(report: ReportInput, folder: Path) -> ReportPaths:
    """Write ``index.html``, ``metrics.json`` and the pictures into `folder`.

    The page needs no network and no other file. All of it is made before any of it is written,
    each file is written whole, and the same input gives the same bytes.

    Raises
    ------
    StorageError
        If the folder cannot be written.
    DataError
        If a curve has no days or holds a return that is not a number.
    """
    found = {
        (c.name, c.execution_lag): measures(c, report.cash_rate)
        for c in (*report.policy, *report.baselines)
    }
    verdict = _verdict(report)
    files: dict[str, bytes] = {}
    shown = []
    for name, (wide, narrow, caption) in _pictures(report).items():
        files[f"{name}.png"] = png_bytes(wide)
        shown.append(picture(files[f"{name}.png"], png_bytes(narrow), caption))
    files["metrics.json"] = _json(report, found, verdict)
    files["index.html"] = render(report, found, verdict, shown).encode()
    for name, data in files.items():
        write_whole(folder / name, data)
    pictures = tuple(folder / name for name in files if name.endswith(".png"))
    return ReportPaths(folder / "index.html", folder / "metrics.json", pictures, verdict)


def _verdict(report: ReportInput) -> Verdict:
    policy, *others = report.at_lag(0)
    equal = next(c for c in others if c.name == "equal_weight")
    rate = 0.0 if report.cash_rate is None else report.cash_rate
    sharpe = sharpe_difference(policy.returns - rate, equal.returns - rate)
    ours, theirs = (measures(c, report.cash_rate)["sharpe"] for c in (policy, equal))
    headline, judgement = _judgement(sharpe)
    sentence = (
        f"Net of costs on the test split, {policy.dates[0]} to {policy.dates[-1]}, "
        f"{label(policy.name)} had a "
        f"Sharpe ratio of {number(ours, 'ratio')} against {number(theirs, 'ratio')} for equal "
        f"weight: {judgement}."
    )
    return Verdict(headline, sentence, sharpe)


def _judgement(found: SharpeDifference) -> tuple[str, str]:
    """A headline, and the end of the sentence that says how sure it is."""
    if math.isnan(found.difference):
        return "Cannot be compared", "a ratio is undefined, so the two cannot be compared"
    much = number(abs(found.difference), "ratio")
    close = abs(found.difference) < SAME
    side = "higher" if found.difference > 0 else "lower"
    ahead = "about the same" if close else f"{side} by {much}"
    if math.isnan(found.low):
        return (
            "Too few days to tell",
            f"{ahead}, but over so few days whether it is better cannot be told",
        )
    interval = (
        f"{found.level} % interval of the difference {number(found.low, 'ratio')} to "
        f"{number(found.high, 'ratio')}"
    )
    if found.low > 0 or found.high < 0:
        word = "Better" if found.difference > 0 else "Worse"
        return (
            f"{word} than equal weight",
            f"{side} by {much}, more than chance explains ({interval})",
        )
    unsure = f"which of the two is better cannot be told from these days ({interval})"
    if close:
        return "About the same as equal weight", f"about the same; {unsure}"
    word = "Ahead of" if found.difference > 0 else "Behind"
    return f"{word} equal weight, but it cannot be told from chance", f"{ahead}, but {unsure}"


def _pictures(report: ReportInput) -> dict[str, tuple[Figure, Figure, str]]:
    # A dozen allocators more would hide the lines; they have their rows in the table.
    curves = [c for c in report.at_lag(0) if c.name not in ALLOCATORS]
    policy = curves[0]
    few = [policy] + [c for c in curves[1:] if not c.name.startswith("anchor: ")]
    name = label(policy.name)
    out = {
        "equity": (
            *(plots.equity_plot(curves, w) for w in (WIDE, NARROW)),
            "Value of 1 invested on the first day. Equal steps upwards are equal gains in percent.",
        ),
        "drawdown": (
            *(plots.drawdown_plot(few, w) for w in (WIDE, NARROW)),
            f"How far below its earlier high each portfolio stood; shaded for {name}.",
        ),
    }
    if len(policy) > ROLLING:
        out["rolling_sharpe"] = (
            *(plots.rolling_sharpe_plot(few, w, ROLLING) for w in (WIDE, NARROW)),
            "Return for risk over the last half year, day by day. Above 0, it paid to be invested.",
        )
    out["weights"] = (
        *(plots.weights_plot(policy, w) for w in (WIDE, NARROW)),
        f"What {name} held after each day's trade; the figure beside a name is its average.",
    )
    if policy.gates is not None:
        out["gates"] = (
            *(plots.gates_plot(policy, w) for w in (WIDE, NARROW)),
            "How the classical allocations that the policy leans on were mixed.",
        )
    return out  # type: ignore[return-value]


def _json(
    report: ReportInput,
    found: Mapping[tuple[str, int], Mapping[str, float]],
    verdict: Verdict,
) -> bytes:
    curves = [
        {
            "name": c.name,
            "role": "policy" if any(c is p for p in report.policy) else "baseline",
            "execution_lag": c.execution_lag,
            "fee": c.fee,
            "first": str(c.dates[0]),
            "last": str(c.dates[-1]),
            "days": len(c),
            "measures": found[c.name, c.execution_lag],
        }
        for c in (*report.policy, *report.baselines)
    ]
    content = {
        "title": report.title,
        "run": report.run,
        "command": report.command,
        "market": asdict(report.market),
        "splits": report.splits,
        "verdict": asdict(verdict),
        "curves": curves,
        "notes": report.notes,
        "extra": report.extra,
        "pretraining": None if report.pretraining is None else report.pretraining.as_dict(),
        "settings": report.settings,
    }
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it; null where a measure is undefined."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
