"""The verb `plot`: learning curves of runs, finished or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finflow_sb3.errors import ConfigError, StorageError
from finflow_sb3.evaluation.learning_page import learning_page
from finflow_sb3.evaluation.learning_plots import PANELS, Course, learning_plots
from finflow_sb3.evaluation.plot_style import png_bytes, stacked_png
from finflow_sb3.evaluation.report_numbers import number
from finflow_sb3.evaluation.report_template import Row
from finflow_sb3.files import write_whole
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.history import History, is_number, read_history

__all__ = ["Plotted", "RunFigures", "plot_runs"]

WIDE, NARROW = 10.0, 4.6
# Heading → format; the attributes of `RunFigures` in their order.
COLUMNS = {
    "Steps": "count",
    "Training return": "plain",
    "Training net Sharpe": "ratio",
    "Validation Sharpe, last": "ratio",
    "best": "ratio",
    "at step": "count",
    "Excess, last": "fine",
    "Turnover": "times",
    "Events": "count",
}


@dataclass(frozen=True)
class RunFigures:
    """The last and best figures of a run; None where there are none yet.

    Attributes
    ----------
    steps : of the last line, in the unit of the run's kind
    train_return, train_sharpe : of the episodes that ended last
    sharpe, excess, turnover : of the last validation, net of costs, a year
    best_sharpe, best_step : of the best validation
    events : how many were logged
    """

    run: Path
    name: str
    kind: str
    steps: int
    train_return: float | None
    train_sharpe: float | None
    sharpe: float | None
    best_sharpe: float | None
    best_step: int | None
    excess: float | None
    turnover: float | None
    events: int


@dataclass(frozen=True)
class Plotted:
    """What `plot_runs` wrote, and the figures of each run."""

    png: Path
    page: Path
    runs: tuple[RunFigures, ...]


def plot_runs(
    runs: Sequence[str | Path] | str | Path, output: str | Path | None = None, smooth: int = 1
) -> Plotted:
    """Write ``learning_curves.png`` and ``learning_curves.html``, which needs no other file.

    Runs of both kinds may be mixed, and may be going on.

    Parameters
    ----------
    runs : folders of runs
    output : folder to write into; ``report`` in the first run if not given
    smooth : lines of the log in the moving mean

    Raises
    ------
    ArtefactError
        If a folder is not that of a run with metrics, or `output` cannot be written.
    ConfigError
        If there is no run, or `smooth` is below 1.
    """
    folders = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(run) for run in runs]
    if not folders:
        raise ConfigError("plot: no run is named; give the folder of one")
    if smooth < 1:
        raise ConfigError(f"smooth: {smooth} is out of range; 1 draws the lines as they are")
    folders = list(dict.fromkeys(folders))
    histories = [read_history(folder) for folder in folders]
    courses = [_course(h, n) for h, n in zip(histories, _names(folders), strict=True)]
    figures = tuple(_figures(h, c.name) for h, c in zip(histories, courses, strict=True))
    wide, narrow = (
        [png_bytes(figure) for figure in learning_plots(courses, width, smooth).values()]
        for width in (WIDE, NARROW)
    )
    page = learning_page(
        title=courses[0].name if len(courses) == 1 else f"{len(courses)} runs",
        subtitle=", ".join(str(folder) for folder in folders),
        columns=list(COLUMNS),
        groups=_rows(figures),
        pictures=list(zip(wide, narrow, strict=True)),
        caption=_caption(smooth, histories),
        events=_events(histories, courses),
    )
    target = folders[0] / "report" if output is None else Path(output)
    png, html = target / "learning_curves.png", target / "learning_curves.html"
    try:
        write_whole(png, stacked_png(wide))
        write_whole(html, page.encode())
    except StorageError as error:
        raise StorageError(f"{error}, or choose another folder with --output") from error
    return Plotted(png, html, figures)


def _names(folders: Sequence[Path]) -> list[str]:
    """``<algo>/<env>_<n>`` and the seed; the whole path where two would be called alike."""
    short = [f"{f.absolute().parent.name}/{f.absolute().name}" for f in folders]
    names = [s if Counter(short)[s] == 1 else str(f) for s, f in zip(short, folders, strict=True)]
    seeds = [_seed(folder) for folder in folders]
    if len(set(seeds)) == 1:
        return names
    return [f"{name}, seed {seed}" for name, seed in zip(names, seeds, strict=True)]


def _seed(folder: Path) -> int | None:
    if not (folder / "config.yml").is_file():
        return None
    return RunFolder.open(folder).settings().run.seed


def _course(history: History, name: str) -> Course:
    names = [panel for panel in PANELS[history.kind] if panel != "gates"]
    longest = max((len(line.get("gates") or ()) for line in history.train), default=0)
    names += [f"gates/{k}" for k in range(longest)]
    events = tuple(int(event["step"]) for event in history.events)
    return Course(name, history.kind, {n: history.series(n) for n in names}, events)


def _figures(history: History, name: str) -> RunFigures:
    best = history.best or {}
    lines = (*history.train, *history.validation, *history.events)
    return RunFigures(
        run=history.run,
        name=name,
        kind=history.kind,
        steps=max(int(line["step"]) for line in lines),
        train_return=_last(history, "return"),
        train_sharpe=_last(history, "net_sharpe"),
        sharpe=_last(history, "validation/sharpe"),
        best_sharpe=best.get("sharpe"),
        best_step=best.get("step"),
        excess=_last(history, "validation/excess"),
        turnover=_last(history, "validation/turnover"),
        events=len(history.events),
    )


def _last(history: History, name: str) -> float | None:
    values = history.series(name)[1]
    return values[-1] if values else None


def _rows(figures: Sequence[RunFigures]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for one in figures:
        values = (
            one.steps,
            one.train_return,
            one.train_sharpe,
            one.sharpe,
            one.best_sharpe,
            one.best_step,
            one.excess,
            one.turnover,
            one.events,
        )
        cells = tuple(_cell(v, kind) for v, kind in zip(values, COLUMNS.values(), strict=True))
        groups.setdefault(one.kind.capitalize(), []).append(Row(one.name, cells))
    return groups


def _cell(value: float | None, kind: str) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if kind == "count" else number(value, kind)


def _caption(smooth: int, histories: Sequence[History]) -> str:
    parts = ["A star marks the best validation, a triangle on the upper edge an event."]
    if smooth > 1:
        parts.append(f"Lines are means over {smooth} lines of the log, which are drawn faintly.")
    if len(histories) > 1:
        parts.append("The gates of the runs after the first are dashed.")
    return " ".join(parts)


def _events(histories: Sequence[History], courses: Sequence[Course]) -> list[tuple[str, str]]:
    several = len(histories) > 1
    return [
        (
            f"{course.name}, step {event['step']:,}" if several else f"Step {event['step']:,}",
            _said(event),
        )
        for history, course in zip(histories, courses, strict=True)
        for event in history.events
    ]


def _said(event: dict[str, Any]) -> str:
    parts = [str(event[k]) for k in ("check", "action", "message") if event.get(k) is not None]
    figures = [
        f"{name} {value:g}" for name, value in event.items() if name != "step" and is_number(value)
    ]
    return ", ".join([": ".join(parts), *figures])
