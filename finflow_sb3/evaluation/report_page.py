"""The report as a page: which figures stand where, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from finflow_sb3.evaluation import report_template as template
from finflow_sb3.evaluation.plot_style import label

if TYPE_CHECKING:
    from finflow_sb3.evaluation.report import ReportInput, Verdict

__all__ = ["number", "render"]

# Measure → name of its column, format, meaning.
COLUMNS: dict[str, tuple[str, str, str]] = {
    "total_return": ("Total return", "percent", "growth over the whole period"),
    "annual_return": ("Annual return", "percent", "geometric mean growth a year"),
    "volatility": ("Volatility", "percent", "standard deviation of daily returns, a year"),
    "sharpe": ("Sharpe", "ratio", "mean return above cash over its standard deviation, a year"),
    "sortino": ("Sortino", "ratio", "mean return above cash over the downside deviation, a year"),
    "calmar": ("Calmar", "ratio", "annual return over the largest drawdown"),
    "max_drawdown": ("Max draw\u00addown", "percent", "largest loss from an earlier high"),
    "var_95": ("VaR 5\u00a0%", "fine", "daily return undercut on one day in twenty"),
    "cvar_95": ("CVaR 5\u00a0%", "fine", "mean of the worst twentieth of days"),
    "downside_deviation": ("Downside dev.", "percent", "volatility of returns below cash, a year"),
    "turnover": ("Turn\u00adover", "times", "purchases plus sales over value, a year"),
    "cost": ("Costs paid", "plain", "sum, for an initial value of 1"),
    "cost_drag": ("Cost drag", "fine", "costs over value, a year"),
    "win_rate": ("Win rate", "percent", "share of days with a gain"),
    "profit_factor": ("Profit factor", "ratio", "sum of the gains over sum of the losses"),
}


def render(
    report: ReportInput,
    found: Mapping[tuple[str, int], Mapping[str, float]],
    verdict: Verdict,
    pictures: list[str],
) -> str:
    policy = report.at_lag(0)[0]
    market = report.market
    warning = ""
    if market.survivorship is not None:
        warning = f'<p class="warn"><b>Mind the universe.</b> {escape(market.survivorship)}</p>'
    return template.PAGE.substitute(
        title=escape(report.title),
        subtitle=escape(
            f"{report.run} · {market.source}, {len(market.assets)} assets · test split "
            f"{policy.dates[0]} to {policy.dates[-1]}"
        ),
        headline=escape(verdict.headline),
        verdict=escape(verdict.sentence),
        warning=warning,
        tiles=_tiles(report, found),
        table_note=escape(
            "All figures after costs. Lag 0 trades at the close of the decision, lag 1 at the next."
        ),
        table=_table(report, found),
        definitions=template.definitions(
            {column.replace("\u00ad", ""): meaning for column, _, meaning in COLUMNS.values()}
        ),
        pictures="\n".join(pictures),
        splits=_splits(report),
        pretraining=_pretraining(report),
        facts=template.pairs_table(_facts(report)),
        notes=template.notes_list(report.notes),
        settings=template.settings_block(report.settings),
        command=escape(report.command),
        footer=escape(
            f"The interval is a paired stationary bootstrap ({verdict.sharpe.draws:,} draws, "
            f"blocks of {verdict.sharpe.block} days on average). "
            "A dash stands where a measure is undefined. "
            "A backtest shows what rules would have earned in the past; it is no forecast."
        ),
    )


def _tiles(report: ReportInput, found: Mapping[tuple[str, int], Mapping[str, float]]) -> str:
    policy = report.at_lag(0)[0]
    ours, theirs = found[policy.name, 0], found["equal_weight", 0]
    names = ("sharpe", "annual_return", "volatility", "max_drawdown", "turnover", "cost_drag")
    tiles = []
    for name in names:
        column, kind, _ = COLUMNS[name]
        tiles.append(
            template.tile(
                column.replace("\u00ad", ""),
                number(ours[name], kind),
                f"equal weight {number(theirs[name], kind)}",
            )
        )
    return "\n".join(tiles)


def _table(report: ReportInput, found: Mapping[tuple[str, int], Mapping[str, float]]) -> str:
    groups = {}
    for lag in sorted({c.execution_lag for c in (*report.policy, *report.baselines)}):
        groups[f"Lag {lag}"] = [
            template.Row(
                label(c.name),
                tuple(
                    number(found[c.name, lag][name], kind) for name, (_, kind, _) in COLUMNS.items()
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
        "<h2>Pretraining</h2>"
        f'<p class="muted">{escape(about)}</p>'
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


def number(value: float, kind: str) -> str:
    """A measure as a reader wants it: a true minus, a dash where it is undefined."""
    if not math.isfinite(value):
        return "–"
    text = {
        "percent": f"{100 * value:.1f} %",
        "fine": f"{100 * value:.2f} %",
        "ratio": f"{value:.2f}",
        "figure": f"{value:.3f}",
        "times": f"{value:.1f} ×",
        "plain": f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}",
    }[kind]
    if not any(digit in text for digit in "123456789"):
        text = text.removeprefix("-")
    return text.replace("-", "−").replace(" ", "\u00a0")
