"""Sections of the fact sheet that an analysis fills: calendar, markets, references, certainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from finflow_sb3.evaluation.analysis import Analysis
from finflow_sb3.evaluation.bootstrap import Interval
from finflow_sb3.evaluation.charts import Chart
from finflow_sb3.evaluation.factors import FactorModel
from finflow_sb3.evaluation.periods import Period
from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.relative import Estimate, Relative
from finflow_sb3.evaluation.report_numbers import number
from finflow_sb3.evaluation.report_template import (
    Row,
    notes_list,
    pairs_table,
    paragraph,
    plain_table,
    subtitle,
)
from finflow_sb3.evaluation.significance import Significance

__all__ = [
    "calendar",
    "certainty",
    "factors_table",
    "interval_text",
    "intervals_chart",
    "markets",
    "relative_table",
]

CUT = "Cut: it began before these days, or goes on after them."
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def interval_text(found: Interval, kind: str = "ratio") -> str:
    """Both ends of an interval; a dash where there is none."""
    if math.isnan(found.low) or math.isnan(found.high):
        return "–"
    return f"{number(found.low, kind)} to {number(found.high, kind)}"


def calendar(analysis: Analysis) -> str:
    """Net returns by month as a heat map, and by year beside equal weight."""
    returns = {(m.year, m.month): m.policy for m in analysis.months}
    largest = max((abs(r) for r in returns.values()), default=0.0)
    rows = []
    for year in analysis.years:
        cells = "".join(_heat_cell(returns.get((year.year, m)), largest) for m in range(1, 13))
        sums = (year.policy, year.equal_weight, year.policy - year.equal_weight)
        cells += "".join(f'<td class="sum">{number(r, "percent")}</td>' for r in sums)
        rows.append(f'<tr><th scope="row">{year.year}</th>{cells}</tr>')
    names = (*MONTHS, "Year", "Equal weight", "Difference")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    about = (
        f"Net return of {label(analysis.policy)} in each month, in percent; the first and last "
        "month and year may be parts."
    )
    return (
        f"{paragraph(about)}"
        '<div class="scroll"><table class="heat"><thead><tr><th scope="col">Year</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _heat_cell(value: float | None, largest: float) -> str:
    if value is None:
        return "<td></td>"
    strength = 0.55 * abs(value) / largest if largest > 0.0 else 0.0
    side = "gain" if value >= 0.0 else "loss"
    shown = number(value, "percent").removesuffix("\u00a0%")
    return f'<td style="background: rgba(var(--{side}), {strength:.2f})">{shown}</td>'


def markets(analysis: Analysis) -> str:
    """Stress windows, and rising and falling markets."""
    parts = []
    if analysis.stress.periods or analysis.stress.remarks:
        parts.append(subtitle("Stress windows"))
        parts.append(_periods_table(analysis.stress.periods, "Window"))
        parts.append(notes_list(analysis.stress.remarks))
    if analysis.phases.periods:
        parts.append(subtitle("Rising and falling markets"))
        parts.append(paragraph(analysis.phases.sentence))
        parts.append(_periods_table(analysis.phases.periods, "Market"))
    return "".join(parts)


def _periods_table(periods: Sequence[Period], first: str) -> str:
    rows = []
    for each in periods:
        cells = [
            f"{each.first} to {each.last}",
            f"{each.days:,}{'' if each.whole else ' (cut)'}",
        ]
        for measure, kind in (
            ("total_return", "percent"),
            ("sharpe", "ratio"),
            ("max_drawdown", "percent"),
        ):
            for figures in (each.policy, each.equal_weight):
                cells.append(number(getattr(figures, measure), kind))
        rows.append(Row(each.name.capitalize(), tuple(cells)))
    columns = ["Days from, to", "Days"]
    for measure in ("Return", "Sharpe", "Drawdown"):
        columns += [measure, "equal weight"]
    cut = "" if all(each.whole for each in periods) else paragraph(CUT)
    return plain_table(columns, rows, first) + cut


def relative_table(found: Sequence[Relative]) -> str:
    """Alpha, beta, tracking and capture against each reference."""
    rows = [
        Row(
            label(each.reference),
            (
                _estimate(each.alpha, "percent"),
                _p_value(each.alpha),
                _estimate(each.beta, "ratio"),
                number(each.correlation, "ratio"),
                number(each.r_squared, "ratio"),
                number(each.tracking_error, "percent"),
                number(each.information_ratio, "ratio"),
                f"{number(each.up_capture, 'percent')} ({each.up_months})",
                f"{number(each.down_capture, 'percent')} ({each.down_months})",
            ),
        )
        for each in found
    ]
    columns = (
        "Alpha a year",
        "p",
        "Beta",
        "Correlation",
        "R²",
        "Tracking error",
        "Information ratio",
        "Up capture (months)",
        "Down capture (months)",
    )
    if not found:
        return ""
    about = (
        "Regressions of daily returns in excess of cash, ± Newey–West standard errors "
        f"({found[0].lags} lags); p that alpha is 0. Capture: mean monthly return in months in "
        "which the reference rose (or fell), over the reference's own."
    )
    return plain_table(columns, rows, "Reference") + paragraph(about)


def factors_table(model: FactorModel) -> str:
    """What the factors explain, or the sentence that says why there is nothing."""
    estimates = [] if model.alpha is None else [("Alpha a year", model.alpha, "percent")]
    estimates += [(each.name, each.estimate, "ratio") for each in model.loadings]
    rows = [
        Row(name, (number(e.value, kind), number(e.error, kind), _p_value(e)))
        for name, e, kind in estimates
    ]
    about = ""
    if rows:
        about = paragraph(
            f"{model.source}; market: {model.market}; {model.days:,} days, {model.first} to "
            f"{model.last}; R² {number(model.r_squared, 'ratio')}; Newey–West errors, "
            f"{model.lags} lags."
        )
    table = plain_table(("Loading", "Error", "p"), rows, "Factor")
    return subtitle("Factors") + paragraph(model.sentence, muted=False) + table + about


def certainty(analysis: Analysis) -> str:
    """Intervals of every curve, and what is left of the Sharpe ratio after chance and search."""
    rows = [
        Row(
            label(each.name),
            (
                number(each.sharpe.value, "ratio"),
                interval_text(each.sharpe),
                "–" if each.difference is None else number(each.difference.value, "ratio"),
                "–" if each.difference is None else interval_text(each.difference),
            ),
            policy=place == 0,
        )
        for place, each in enumerate(analysis.intervals)
    ]
    inner = f"{analysis.level} % interval"
    table = plain_table(("Sharpe", inner, "Above equal weight", inner), rows, "Portfolio")
    about = (
        f"Lag {analysis.execution_lag}, {analysis.days:,} days. Stationary bootstrap, paired by "
        f"day: {analysis.draws:,} draws, blocks of {analysis.block} days on average."
    )
    chance = pairs_table(_significance(analysis.significance))
    return table + paragraph(about) + subtitle("After chance and search") + chance


def _significance(found: Significance) -> list[tuple[str, str]]:
    need = "never: it is not above zero"
    if math.isfinite(found.minimum_days):
        need = f"{math.ceil(found.minimum_days):,} days at {found.level} %; there are "
        need += f"{found.days:,}"
    grounds = "assumed from chance alone" if found.assumed else "as found"
    spread = number(found.trials_deviation, "ratio")
    return [
        ("Sharpe ratio, a year", number(found.sharpe, "ratio")),
        ("Probability that it is above zero", number(found.probabilistic, "percent")),
        ("Record that it needs for that", need),
        ("Configurations tried", f"{found.trials:,} (deviation {spread}, {grounds})"),
        ("Best Sharpe ratio of as many without skill", number(found.expected_best, "ratio")),
        ("Probability that it is above that (deflated)", number(found.deflated, "percent")),
        ("Skewness of daily returns", number(found.skewness, "ratio")),
        ("Kurtosis of daily returns (normal: 3)", number(found.kurtosis, "ratio")),
    ]


def intervals_chart(analysis: Analysis) -> Chart | None:
    """Differences of Sharpe ratios to equal weight's with their intervals, a line a curve.

    None where no curve has an interval.
    """
    known = [
        (each.name, each.difference)
        for each in analysis.intervals
        if each.difference is not None
        and math.isfinite(each.difference.low)
        and math.isfinite(each.difference.high)
    ]
    if not known:
        return None
    colours = ["--accent" if name == analysis.policy else "--plain" for name, _ in known]
    marks = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": escape(label(name)),
            "x": [found.value],
            "y": [escape(label(name))],
            "marker": {"color": colour, "size": 9},
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [found.high - found.value],
                "arrayminus": [found.value - found.low],
                "color": colour,
                "thickness": 2,
                "width": 5,
            },
            "showlegend": False,
            "hovertemplate": "%{x:.2f}",
        }
        for (name, found), colour in zip(known, colours, strict=True)
    ]
    height = 90 + 27 * len(known)
    return Chart(
        "intervals",
        "Sharpe ratio above equal weight",
        f"Points and {analysis.level} % intervals. One that crosses 0 cannot be told from chance.",
        tuple(marks),
        {
            "xaxis": {"zeroline": True, "hoverformat": ".2f"},
            "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False, "dtick": 1},
        },
        height=height,
        height_narrow=height,
    )


def _estimate(found: Estimate, kind: str) -> str:
    return f"{number(found.value, kind)} ± {number(found.error, kind)}"


def _p_value(found: Estimate) -> str:
    if not math.isfinite(found.p_value):
        return "–"
    return "< 0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"
