"""The fact sheet's tables of costs: their parts, and the fees at which an edge is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from finflow_sb3.evaluation.break_even import NAMES, BreakEven
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.report_numbers import number
from finflow_sb3.evaluation.report_template import Row, paragraph, plain_table, subtitle

if TYPE_CHECKING:
    from finflow_sb3.evaluation.report import ReportInput

__all__ = ["costs"]


def costs(report: ReportInput) -> str:
    """Costs paid by each curve, by their parts where there are any, and break-even fees."""
    return _parts(report.at_lag(0)) + _break_even(report.break_even)


def _parts(curves: Sequence[Curve]) -> str:
    paid = [_paid(curve) for curve in curves]
    names = list(dict.fromkeys(part for parts in paid for part, sum_ in parts.items() if sum_))
    if len(names) < 2:  # one part is all of the costs, which stand in the table of measures
        return ""
    rows = [
        Row(
            label(curve.name),
            (
                *(number(parts.get(name, np.nan), "plain") for name in names),
                number(float(np.sum(curve.cost)), "plain"),
            ),
            policy=place == 0,
        )
        for place, (curve, parts) in enumerate(zip(curves, paid, strict=True))
    ]
    table = plain_table([*(n.capitalize() for n in names), "All costs"], rows, "Portfolio")
    return (
        subtitle("Costs by their parts")
        + paragraph("Paid over the whole period, in units of the initial value.")
        + table
    )


def _paid(curve: Curve) -> dict[str, float]:
    """Sum of each part of a curve's costs; empty where the curve does not tell them apart."""
    return {name: float(np.sum(values)) for name, values in curve.cost_parts.items()}


def _break_even(found: Sequence[BreakEven]) -> str:
    rows = [
        Row(
            f"{NAMES[each.measure][0].upper()}{NAMES[each.measure][1:]}, lag {each.execution_lag}",
            (
                number(each.free_edge, "fine" if each.measure == "annual_return" else "figure"),
                each.phrase(),
                f"{each.backtests:,}",
            ),
        )
        for each in found
    ]
    if not rows:
        return ""
    about = (
        "The fee of traded value, paid by both, at which what the policy earns above equal weight "
        "is gone; the policy acted anew at every fee that was tried."
    )
    return (
        subtitle("Break-even fee")
        + paragraph(about)
        + plain_table(("Edge without a fee", "Gone at", "Backtests"), rows, "Edge by")
    )
