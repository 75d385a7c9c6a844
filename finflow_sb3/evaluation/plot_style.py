"""How the pictures look: colours, lines, type, legends, axes of dates, and PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import (
    AutoDateLocator,
    ConciseDateFormatter,
    DateFormatter,
    DateLocator,
    YearLocator,
)
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from finflow_sb3.evaluation.allocators import ALLOCATORS
from finflow_sb3.evaluation.curve import Curve

__all__ = [
    "canvas",
    "colour",
    "dress",
    "label",
    "legend",
    "line_style",
    "png_bytes",
    "spread",
    "stacked_png",
    "text",
    "wide",
    "year_axis",
    "years",
]

Float = NDArray[np.float64]

INK, MUTED, GRID = "#22303c", "#66737f", "#e3e7eb"
POLICY = "#0b4f8a"
CASH, OTHER, NEXT = "#f1ede4", "#d3d8dc", "#a3abb2"
SMALL = 8.5
DPI = 150

# Okabe & Ito (2008) for the anchors, Paul Tol's "muted" for assets: both safe for the colour-blind.
COLOURS = {
    "equal_weight": "#3d4650",
    "buy_and_hold": "#8a939b",
    "anchors' average": "#6b7680",
    "index": "#b23a48",
    "sixty_forty": "#7a5195",
    "volatility": "#56b4e9",
    "correlation": "#009e73",
    "momentum": "#e69f00",
    "defensive": "#cc79a7",
    "growth": "#d55e00",
}
STYLES = {"buy_and_hold": (0, (1, 1.3)), "anchors' average": (0, (4, 1.6))}
PALETTE = (
    "#332288",
    "#88ccee",
    "#117733",
    "#ddcc77",
    "#cc6677",
    "#44aa99",
    "#882255",
    "#999933",
)
LABELS = {
    "equal_weight": "Equal weight",
    "buy_and_hold": "Buy and hold",
    "anchors' average": "Anchors' average",
    "hrp": "HRP",
    "herc": "HERC",
    "minimum_cvar": "Minimum CVaR",
    "sixty_forty": "60/40",
    "index": "Index, cost-free",
    "ensemble": "Ensemble",
    "cqsac": "CQSAC",
    "cqsac_scratch": "CQSAC from scratch",
    "iql": "IQL",
    "td3bc": "TD3+BC",
    "sac": "SAC",
    "td3": "TD3",
    "ddpg": "DDPG",
    "ppo": "PPO",
    "a2c": "A2C",
    "tqc": "TQC",
    "crossq": "CrossQ",
}


def label(name: str) -> str:
    """How a curve is called in pictures and tables."""
    if name.startswith("anchor: "):
        return f"Anchor: {name.removeprefix('anchor: ')}"
    if name.startswith("member "):
        number, _, algo = name.partition(": ")
        return f"{number.capitalize()}: {LABELS.get(algo, algo)}"
    if name in ALLOCATORS and name not in LABELS:
        return name.replace("_", " ").capitalize().replace("sharpe", "Sharpe")
    return LABELS.get(name, name)


def canvas(width: float, title: str) -> tuple[Figure, Axes]:
    """An empty figure of `width` inches with its title, and its axes."""
    height = width * 0.42 if wide(width) else width * 0.85
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    size = 11.0 if wide(width) else 9.5
    figure.suptitle(text(title), x=0.01, ha="left", fontsize=size, color=INK, wrap=True)
    dress(axes)
    return figure, axes


def dress(axes: Axes) -> None:
    """Give axes the look of all pictures: lines to read heights by, and no box."""
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(axis="both", labelsize=SMALL, colors=MUTED, length=0)
    axes.tick_params(axis="x", length=3)


def wide(width: float) -> bool:
    """Whether names fit beside the picture."""
    return width >= 7.0


def line_style(curve: Curve, emphasised: bool) -> dict[str, object]:
    """Keyword arguments of a line: the policy's, a rule's or an anchor's."""
    if emphasised:
        return {"color": POLICY, "linewidth": 2.1, "zorder": 5}
    anchor = curve.name.startswith("anchor: ")
    return {
        "color": colour(curve.name),
        "linestyle": STYLES.get(curve.name, "-"),
        "linewidth": 0.9 if anchor else 1.2,
        "alpha": 0.75 if anchor else 0.95,
        "zorder": 3 if anchor else 4,
    }


def colour(name: str) -> str:
    """The colour of a name, the same in every picture."""
    known = COLOURS.get(name.removeprefix("anchor: "))
    return known or PALETTE[sum(name.encode()) % len(PALETTE)]


def spread(ends: Float, gap: float) -> Float:
    """Places at least `gap` apart in the order of `ends`, moved no further than needed."""
    order = np.argsort(ends, kind="stable")
    steps = np.arange(len(ends)) * gap
    # Least-squares places under a minimal gap: isotonic regression of what is left after it.
    blocks: list[list[float]] = []
    for value in ends[order] - steps:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value_, size = blocks.pop()
            total = blocks[-1][1] + size
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + value_ * size) / total, total]
    level = np.concatenate([np.full(int(size), value) for value, size in blocks])
    places = np.empty(len(ends))
    places[order] = level + steps
    return places


def legend(
    figure: Figure,
    handles: Sequence[Line2D | Patch],
    texts: list[str],
    beside: bool,
    title: str | None = None,
) -> None:
    """Names in a column to the right of the picture or in rows below it."""
    drawn = figure.legend(
        handles,
        texts,
        loc="outside right upper" if beside else "outside lower left",
        ncols=1 if beside else (6 if wide(figure.get_figwidth()) else 2),
        fontsize=SMALL,
        frameon=False,
        labelcolor=INK,
        handlelength=1.6,
        title=title,
        title_fontsize=SMALL,
        alignment="left",
    )
    drawn.get_title().set_color(MUTED)


def year_axis(axes: Axes, curve: Curve) -> None:
    """Ticks at the years, or at months where the period is short."""
    span = float((curve.dates[-1] - curve.decisions[0]) / np.timedelta64(365, "D"))
    figure = axes.get_figure(root=True)
    most = 12 if figure is not None and wide(figure.get_figwidth()) else 6
    locator: DateLocator
    if span > 2.0:
        locator = YearLocator(max(1, int(np.ceil(span / most))))  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_formatter(DateFormatter("%Y"))  # type: ignore[no-untyped-call]
    else:
        locator = AutoDateLocator(minticks=2, maxticks=most)  # type: ignore[no-untyped-call]
        concise = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_formatter(concise)
    axes.xaxis.set_major_locator(locator)
    axes.margins(x=0.0)


def years(curve: Curve) -> str:
    """The years of a curve, for titles."""
    first, last = str(curve.dates[0])[:4], str(curve.dates[-1])[:4]
    return first if first == last else f"{first}–{last}"


def text(text: str) -> str:
    """`text` as it stands: no mathematics between dollars, no label hidden by a leading _."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG; the same figure gives the same bytes."""
    agg = FigureCanvasAgg(figure)
    agg.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(agg.buffer_rgba())  # type: ignore[no-untyped-call]
    return _packed(Image.fromarray(pixels).convert("RGB"))


def stacked_png(pngs: Sequence[bytes]) -> bytes:
    """Pictures of the same width as one, below each other."""
    images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
    whole = Image.new("RGB", (images[0].width, sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    return _packed(whole)


def _packed(drawn: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # 256 colours look the same and take a third of the room, which a page that carries them needs.
    drawn.quantize(256, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
