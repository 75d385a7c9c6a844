"""Interactive charts as plain plotly figures: traces, a layout, and the days they share.

Nothing here imports plotly. Numbers travel as base64 arrays of 32-bit floats, days once for all
charts; a colour that begins with ``--`` is a variable of the page's style sheet, so that charts
follow the reader's light or dark scheme. Names are escaped: plotly reads some HTML in text.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.plot_style import COLOURS, PALETTE, label

__all__ = ["STEP", "Chart", "band", "days", "line", "packed", "series_name", "thinned"]

Float = NDArray[np.float64]

# Days between two points of thinned series: a trading week.
STEP = 5
# Curves that are shown at first; the others wait in the legend.
SHOWN = ("equal_weight", "buy_and_hold", "index", "anchors' average")
# Of medium lightness, so that they can be told from white and from dark paper.
LINES = (
    "#8a7fd1",
    "#2f9e95",
    "#a8992f",
    "#c9656b",
    "#5f8fc9",
    "#9a8f80",
    "#5aa469",
    "#b07cc6",
    "#d08a4e",
    "#7d8fa3",
)
BANDS = (*PALETTE, "#aa4499", "#e8a33d", "#6699cc", "#c07a5a")


@dataclass(frozen=True)
class Chart:
    """One figure of the page.

    Attributes
    ----------
    id : what its place in the page is called, behind ``chart-``
    title, caption : plain text above and below
    traces, layout : as plotly has them, apart from ``dates`` in a trace: which of `days` is its x
    height, height_narrow : in pixels, on a page and on a telephone
    """

    id: str
    title: str
    caption: str
    traces: tuple[dict[str, Any], ...]
    layout: Mapping[str, Any]
    height: int = 420
    height_narrow: int = 400

    def as_dict(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {
            "id": f"chart-{self.id}",
            "data": list(self.traces),
            "layout": dict(self.layout),
        }


def days(curve: Curve) -> dict[str, list[str]]:
    """The days that traces name: all, all behind the first decision, and one a week."""
    every = [str(day) for day in curve.dates]
    first = str(curve.decisions[0])
    return {
        "all": every,
        "start": [first, *every],
        "weeks": [every[i] for i in thinned(len(every))],
    }


def thinned(count: int) -> NDArray[np.intp]:
    """Every fifth of `count` days, the last among them."""
    return np.arange((count - 1) % STEP, count, STEP)


def packed(values: NDArray[Any], bits: int = 32) -> dict[str, str]:
    """Numbers as plotly's typed arrays: little-endian floats in base64."""
    data = np.asarray(values, dtype=f"<f{bits // 8}")
    return {"dtype": f"f{bits // 8}", "bdata": base64.b64encode(data.tobytes()).decode("ascii")}


def series_name(curve: Curve, lagged: bool = False) -> str:
    """How a curve is called in a legend."""
    name = escape(label(curve.name))
    return f"{name}, lag {curve.execution_lag}" if lagged else name


def line(
    curves: Sequence[Curve], place: int, values: Float, dates: str, **changes: Any
) -> dict[str, Any]:
    """The trace of ``curves[place]``; the first is the policy, and stands out.

    Parameters
    ----------
    values : what is drawn, shape [as many as `dates` has]
    changes : further entries of the trace, or others than usual
    """
    curve = curves[place]
    shown = place == 0 or curve.name in SHOWN
    return {
        "type": "scatter",
        "mode": "lines",
        "name": series_name(curve),
        "dates": dates,
        "y": packed(values),
        "line": _style(curves, place),
        "visible": True if shown else "legendonly",
        # The policy's line lies above those that it is compared with.
        "zorder": 10 if place == 0 else 1,
        **changes,
    }


def _style(curves: Sequence[Curve], place: int) -> dict[str, Any]:
    name = curves[place].name
    if place == 0:
        return {"color": "--accent", "width": 2.4}
    if name == "equal_weight":
        return {"color": "--equal", "width": 1.6}
    if name == "buy_and_hold":
        return {"color": "--plain", "width": 1.4, "dash": "dot"}
    if name == "anchors' average":
        return {"color": "--plain", "width": 1.4, "dash": "dash"}
    known = COLOURS.get(name.removeprefix("anchor: "))
    if known is not None and name.startswith("anchor: "):
        return {"color": known, "width": 1.2, "dash": "dash"}
    return {"color": LINES[place % len(LINES)], "width": 1.4}


def band(name: str, values: Float, colour: str, dates: str = "weeks") -> dict[str, Any]:
    """One area of a stack of shares, shape [as many as `dates` has]."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escape(name),
        "dates": dates,
        "y": packed(values),
        "stackgroup": "shares",
        "line": {"width": 0.4, "color": colour},
        "fillcolor": colour,
        "hovertemplate": "%{y:.1%}",
    }
