"""`metrics.json`: every figure of a report as plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from finflow_sb3.evaluation.drawdowns import deepest_falls, worst_days

if TYPE_CHECKING:
    from finflow_sb3.evaluation.report import Found, ReportInput

__all__ = ["metrics_json"]


def metrics_json(report: ReportInput, found: Found) -> bytes:
    """The file's content; null where a figure is undefined."""
    curves = [
        {
            "name": c.name,
            "role": "policy" if any(c is p for p in report.policy) else "baseline",
            "execution_lag": c.execution_lag,
            "fee": c.fee,
            "first": str(c.dates[0]),
            "last": str(c.dates[-1]),
            "days": len(c),
            "measures": found.measures[c.name, c.execution_lag],
        }
        for c in (*report.policy, *report.baselines)
    ]
    policy = report.at_lag(0)[0]
    content = {
        "title": report.title,
        "run": report.run,
        "command": report.command,
        "market": asdict(report.market),
        "splits": report.splits,
        "verdict": asdict(found.verdict),
        "curves": curves,
        "analysis": found.analysis.as_dict(),
        "drawdowns": [asdict(fall) for fall in deepest_falls(policy)],
        "worst_days": [{"date": day, "return": value} for day, value in worst_days(policy)],
        "break_even": [asdict(each) for each in report.break_even],
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
