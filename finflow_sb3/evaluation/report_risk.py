"""The fact sheet's tables of risk: tails, deepest drawdowns, worst days."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finflow_sb3.evaluation.drawdowns import deepest_falls, worst_days
from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.report_numbers import number
from finflow_sb3.evaluation.report_template import Row, plain_table, subtitle

if TYPE_CHECKING:
    from finflow_sb3.evaluation.report import Found, ReportInput

__all__ = ["risk"]


def risk(report: ReportInput, found: Found) -> str:
    """VaR and CVaR at every lag, then the drawdowns and the worst days of the policy."""
    return _tails(report, found) + _falls(report) + _days(report)


def _tails(report: ReportInput, found: Found) -> str:
    measures = ("var_95", "cvar_95", "volatility", "downside_deviation", "max_drawdown")
    rows = [
        Row(
            f"{label(curve.name)}, lag {curve.execution_lag}",
            tuple(
                number(
                    found.measures[curve.name, curve.execution_lag][name],
                    "fine" if name.endswith("95") else "percent",
                )
                for name in measures
            ),
            policy=curve.name != "equal_weight",
        )
        for curve in (*report.policy, *report.baselines)
        if curve.name in (report.policy[0].name, "equal_weight")
    ]
    columns = ("VaR 5\u00a0%", "CVaR 5\u00a0%", "Volatility", "Downside dev.", "Max drawdown")
    return plain_table(columns, rows, "Portfolio")


def _falls(report: ReportInput) -> str:
    policy = report.at_lag(0)[0]
    rows = [
        Row(
            number(fall.depth, "percent"),
            (fall.peak, fall.trough, fall.recovered or "not yet", f"{fall.days:,}"),
        )
        for fall in deepest_falls(policy)
    ]
    if not rows:
        return ""
    columns = ("High", "Lowest", "Recovered", "Trading days")
    return subtitle(f"Deepest drawdowns of {label(policy.name)}") + plain_table(
        columns, rows, "Depth"
    )


def _days(report: ReportInput) -> str:
    curves = report.at_lag(0)
    policy = curves[0]
    equal = next(c for c in curves if c.name == "equal_weight")
    theirs = dict(zip((str(day) for day in equal.dates), equal.returns, strict=True))
    rows = [
        Row(day, (number(value, "fine"), number(float(theirs[day]), "fine")))
        for day, value in worst_days(policy)
    ]
    if not rows:
        return ""
    columns = (label(policy.name), "Equal weight")
    return subtitle(f"Worst days of {label(policy.name)}") + plain_table(columns, rows, "Day")
