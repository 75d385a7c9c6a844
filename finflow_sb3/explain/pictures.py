"""The picture of what matters over a period."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finflow_sb3.evaluation.plot_style import colour, dress, text
from finflow_sb3.explain.importance import Heard, Importance

__all__ = ["importance_picture"]

FEATURES = 12
INK, BAR, DPI = "#22303c", "#0b4f8a", 150


def importance_picture(found: Importance, width: float) -> Figure:
    """Groups of features, single features and voices as bars, `width` inches wide."""
    panels = [
        ("Groups of features", list(found.blocks.items())),
        ("Features", list(found.features.items())[:FEATURES]),
        ("Loudness of the anchors", _loud(found.anchors)),
        ("Loudness of the experts", _loud(found.experts)),
    ]
    panels = [(title, pairs) for title, pairs in panels if pairs]
    figure = Figure(figsize=(width, 0.62 * width), dpi=DPI, layout="constrained", facecolor="white")
    figure.suptitle(
        f"Share of the portfolio that each moves, in % (mean of {found.days:,} days)",
        x=0.01,
        ha="left",
        fontsize=11,
        color=INK,
    )
    for axes, (title, pairs) in zip(
        figure.subplots(2, 2, squeeze=False).flat, panels, strict=False
    ):
        _bars(axes, title, pairs)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    return figure


def _loud(voices: dict[str, Heard]) -> list[tuple[str, float]]:
    return [(name, heard.loudness) for name, heard in voices.items()]


def _bars(axes: Axes, title: str, pairs: Sequence[tuple[str, float]]) -> None:
    dress(axes)
    axes.grid(visible=False, axis="y")
    names = [text(name) for name, _ in pairs]
    values = [100.0 * value for _, value in pairs]
    known = title.startswith("Loudness")
    colours = [colour(name) if known else BAR for name, _ in pairs]
    small = max(values) < 0.1
    bars = axes.barh(names, values, color=colours, height=0.7)
    axes.bar_label(bars, fmt="%.3f" if small else "%.2f", padding=3, fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.18 * max(*values, 1e-6))
    axes.set_xticks([])
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)
