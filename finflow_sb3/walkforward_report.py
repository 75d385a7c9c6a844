"""What a walk-forward writes: a table, its figures, its returns, and a picture."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finflow_sb3.config import Settings
from finflow_sb3.config_files import plain_yaml
from finflow_sb3.evaluation.plot_style import label, png_bytes
from finflow_sb3.evaluation.plots import equity_plot
from finflow_sb3.evaluation.report_numbers import COLUMNS, number
from finflow_sb3.files import write_whole

if TYPE_CHECKING:
    from finflow_sb3.evaluation.curve import Curve
    from finflow_sb3.walkforward import WalkForward

__all__ = ["figures", "headings", "write_walk_forward"]

SHOWN = ("sharpe", "annual_return", "volatility", "max_drawdown", "turnover", "cost_drag")


def headings() -> list[str]:
    """What the columns of the table are called."""
    return [COLUMNS[name][0].replace("\u00ad", "") for name in SHOWN]


def figures(found: Mapping[str, float]) -> list[str]:
    """A curve's measures as tables write them."""
    return [number(found[name], COLUMNS[name][1]) for name in SHOWN]


def write_walk_forward(result: WalkForward, settings: Settings) -> None:
    """Table, daily returns, figures, picture and settings, into its folder."""
    curves = [c for c in result.curves if c.execution_lag == 0]
    files = {
        "walkforward.md": _markdown(result),
        "walkforward.csv": _returns(curves),
        "walkforward.json": _json(result),
        "config.yml": plain_yaml(settings),
    }
    for name, text in files.items():
        write_whole(result.out / name, text.encode())
    shown = [c for c in curves if not c.name.startswith("anchor: ")]
    write_whole(result.out / "walkforward.png", png_bytes(equity_plot(shown)))


def _markdown(result: WalkForward) -> str:
    first, last = result.curves[0].dates[0], result.curves[0].dates[-1]
    lines = [
        "# Walk-forward",
        "",
        f"{len(result.folds)} folds, each trained on its past alone; net of costs, out of sample "
        f"from {first} to {last}.",
        "",
        _row(["", "lag", *headings()]),
        _row(["---", "---:", *["---:"] * len(SHOWN)]),
    ]
    for name, lags in result.measures.items():
        for lag, found in sorted(lags.items()):
            lines.append(_row([label(name), lag.removeprefix("lag_"), *figures(found)]))
    lines += ["", "| fold | trained to | chosen on, to | tested to |", "|---:|---|---|---|"]
    for fold in result.folds:
        lines.append(_row([str(fold.number), fold.train_end, fold.validation_end, fold.test_end]))
    if result.left_out:
        lines += ["", f"The last {result.left_out:,} days make no whole fold and are left out."]
    for title, why in result.failed.items():
        lines += ["", f"**{title}** failed: {why}"]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _returns(curves: Sequence[Curve]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["date", *(c.name for c in curves)])
    columns = np.stack([c.returns for c in curves], axis=1)
    writer.writerows(
        [str(d), *map(repr, row)] for d, row in zip(curves[0].dates, columns.tolist(), strict=True)
    )
    return buffer.getvalue()


def _json(result: WalkForward) -> str:
    content: dict[str, Any] = {
        "folds": [vars(fold) for fold in result.folds],
        "measures": {
            name: {
                lag: {k: v if math.isfinite(v) else None for k, v in found.items()}
                for lag, found in lags.items()
            }
            for name, lags in result.measures.items()
        },
        "left_out": result.left_out,
        "failed": result.failed,
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
