"""The fact sheet as a page: which figures and charts stand where."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from finflow_sb3.evaluation import report_charts as charts
from finflow_sb3.evaluation import report_statistics as statistics
from finflow_sb3.evaluation import report_template as template
from finflow_sb3.evaluation.charts import STEP, Chart, days
from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.report_costs import costs
from finflow_sb3.evaluation.report_numbers import COLUMNS, number
from finflow_sb3.evaluation.report_risk import risk
from finflow_sb3.evaluation.report_template import Section

if TYPE_CHECKING:
    from finflow_sb3.evaluation.report import Found, ReportInput

__all__ = ["render"]

DRAWING = files("finflow_sb3.evaluation").joinpath("page.js").read_text(encoding="utf-8")
ROLES = ("growth", "rolling", "holdings", "costs", "risk", "certainty")


def render(report: ReportInput, found: Found) -> str:
    """The whole page.

    The same input gives the same text: ids of charts are fixed, and no date of today is in it.
    """
    from plotly.offline import get_plotlyjs

    library = get_plotlyjs()
    policy = report.at_lag(0)[0]
    drawn = _charts(report, found)
    shown = _sections(report, found, drawn)
    every = [chart.as_dict() for role in ROLES for chart in drawn[role]]
    return template.PAGE.substitute(
        scripts=" ".join(_fingerprint(script) for script in (library, DRAWING)),
        title=escape(report.title),
        subtitle=escape(
            f"{report.run} · {report.market.source}, {len(report.market.assets)} assets · test "
            f"split {policy.dates[0]} to {policy.dates[-1]}"
        ),
        contents=template.contents(shown),
        sections=template.sections_html(shown),
        footer=escape(
            "A dash stands where a measure is undefined. Charts hold every day of value and "
            f"drawdown and one day in {STEP} of everything else, in single precision; all figures "
            "are in metrics.json beside this page. "
            "A backtest shows what rules would have earned in the past; it is no forecast."
        ),
        library=library,
        data=_inert({"dates": days(policy), "charts": every}),
        drawing=DRAWING,
    )


def _fingerprint(script: str) -> str:
    """What lets a browser run this script and no other."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _inert(value: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _charts(report: ReportInput, found: Found) -> dict[str, list[Chart]]:
    """The charts of each section, as far as there is something to draw."""
    curves = report.at_lag(0)
    few = [c for c in curves if not c.name.startswith(("anchor: ", "member "))]
    later = [c for c in report.policy if c.execution_lag != 0]
    gates, intervals = charts.gates_chart(curves[0]), statistics.intervals_chart(found.analysis)
    return {
        "growth": charts.growth_charts(curves, later),
        "rolling": charts.rolling_charts(few),
        "holdings": [charts.weights_chart(curves[0]), *([] if gates is None else [gates])],
        "costs": charts.cost_charts(few),
        "risk": [charts.returns_chart(curves)],
        "certainty": [] if intervals is None else [intervals],
    }


def _sections(
    report: ReportInput, found: Found, drawn: dict[str, list[Chart]]
) -> Sequence[Section]:
    analysis = found.analysis
    placed = {role: "\n".join(map(template.place, each)) for role, each in drawn.items()}
    references = statistics.relative_table(analysis.relative)
    if analysis.factors is not None:
        references += statistics.factors_table(analysis.factors)
    return [
        Section("summary", "Summary", _summary(report, found)),
        Section("growth", "Growth and drawdown", placed["growth"]),
        Section("measures", "Measures, both lags", _measures(report, found)),
        Section("calendar", "Months and years", statistics.calendar(analysis)),
        Section("rolling", "Rolling measures", placed["rolling"]),
        Section("holdings", "Holdings", placed["holdings"]),
        Section("costs", "Turnover and costs", placed["costs"] + costs(report)),
        Section("risk", "Risk", placed["risk"] + risk(report, found)),
        Section("markets", "Kinds of markets", statistics.markets(analysis)),
        Section("references", "Against references", references),
        Section(
            "certainty", "How sure it is", placed["certainty"] + statistics.certainty(analysis)
        ),
        Section("pretraining", "Pretraining", _pretraining(report)),
        Section("run", "Market and run", _run(report)),
        Section(
            "settings",
            "Settings",
            "<details><summary>All settings of this run</summary>"
            f"{template.settings_block(report.settings)}</details>",
        ),
        Section("reproduce", "How to reproduce", f"<pre>{escape(report.command)}</pre>"),
    ]


def _summary(report: ReportInput, found: Found) -> str:
    verdict = found.verdict
    warning = ""
    if report.market.survivorship is not None:
        warning = (
            f'<p class="warn"><b>Mind the universe.</b> {escape(report.market.survivorship)}</p>'
        )
    kind = verdict.outcome if verdict.outcome in ("better", "worse") else "open"
    return (
        f'<div class="verdict {kind}"><strong>{escape(verdict.headline)}</strong>'
        f"<p>{escape(verdict.sentence)}</p></div>\n{warning}"
        f'<div class="tiles">{_tiles(report, found)}</div>'
    )


def _tiles(report: ReportInput, found: Found) -> str:
    policy = report.at_lag(0)[0]
    ours, theirs = found.measures[policy.name, 0], found.measures["equal_weight", 0]
    own = found.analysis.intervals[0]
    inner = f"{found.analysis.level} %: "
    tiles = []
    for name in ("sharpe", "annual_return", "volatility", "max_drawdown", "cvar_95", "turnover"):
        column, kind, _ = COLUMNS[name]
        tiles.append(
            template.tile(
                column.replace("\u00ad", ""),
                number(ours[name], kind),
                f"equal weight {number(theirs[name], kind)}",
                inner + statistics.interval_text(own.sharpe) if name == "sharpe" else "",
            )
        )
    if own.difference is not None:
        gap = template.tile(
            "Sharpe above equal weight",
            number(own.difference.value, "ratio"),
            "the verdict rests on it",
            inner + statistics.interval_text(own.difference),
        )
        tiles.insert(1, gap)
    drag = template.tile(
        "Cost drag",
        number(ours["cost_drag"], "fine"),
        f"equal weight {number(theirs['cost_drag'], 'fine')}",
    )
    return "\n".join([*tiles, drag])


def _measures(report: ReportInput, found: Found) -> str:
    about = "All figures after costs. Lag 0 trades at the close of the decision, lag 1 at the next."
    meanings = {column.replace("\u00ad", ""): meaning for column, _, meaning in COLUMNS.values()}
    return (
        f"{template.paragraph(about)}{_table(report, found)}"
        f"<details><summary>What the columns mean</summary>{template.definitions(meanings)}"
        "</details>"
    )


def _table(report: ReportInput, found: Found) -> str:
    groups = {}
    for lag in sorted({c.execution_lag for c in (*report.policy, *report.baselines)}):
        groups[f"Lag {lag}"] = [
            template.Row(
                label(c.name),
                tuple(
                    number(found.measures[c.name, lag][name], kind)
                    for name, (_, kind, _) in COLUMNS.items()
                ),
                policy=any(c is p for p in report.policy),
            )
            for c in report.at_lag(lag)
        ]
    return template.measures_table([column for column, _, _ in COLUMNS.values()], groups)


def _splits(report: ReportInput) -> str:
    spans = {
        name: float((np.datetime64(last) - np.datetime64(first)) / np.timedelta64(1, "D"))
        for name, (first, last) in report.splits.items()
    }
    total = sum(spans.values()) or 1.0
    return template.split_bar(
        [
            (name, str(first), str(last), spans[name] / total)
            for name, (first, last) in report.splits.items()
        ]
    )


def _run(report: ReportInput) -> str:
    return (
        template.pairs_table(_facts(report))
        + template.notes_list(report.notes)
        + template.subtitle("Periods")
        + _splits(report)
    )


def _pretraining(report: ReportInput) -> str:
    """The best epochs with both judgements, the one that validation chose first."""
    found = report.pretraining
    if found is None:
        return ""
    rows = [
        template.Row(
            f"Epoch {each.epoch:,}",
            (
                number(each.value, "figure"),
                "–" if each.error is None else number(each.error, "figure"),
                "–" if each.sharpe is None else number(each.sharpe, "figure"),
            ),
            policy=place == 0,
        )
        for place, each in enumerate(found.epochs)
    ]
    columns = ("Value", "Its error", "Validation Sharpe")
    about = (
        "Value: discounted sum of rewards from an episode's start, estimated from the offline data "
        f"alone (fitted Q evaluation, {found.steps:,} steps, γ {found.gamma:g})."
    )
    return (
        f"{template.paragraph(about)}"
        f"{template.measures_table(columns, {'Best on validation': rows}, first='Policy of')}"
        f"<p>{escape(found.sentence())}</p>"
    )


def _facts(report: ReportInput) -> list[tuple[str, Any]]:
    market = report.market
    assets = ", ".join(market.assets[:30])
    if len(market.assets) > 30:
        assets += f" and {len(market.assets) - 30} more"
    return [
        ("Source", market.source),
        ("Prices", f"{market.first} to {market.last}"),
        ("Assets", assets),
        ("Fee", f"{report.policy[0].fee * 1e4:g} bps of traded value"),
        *report.extra.items(),
    ]
