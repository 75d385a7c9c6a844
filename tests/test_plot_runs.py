"""Learning curves: which figures are drawn, from which lines, and that the page is safe."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from pipeline_fixtures import tiny_settings
from run_files import COURSE, epoch, event, train, validation, write_run
from test_report import Page
from typer.testing import CliRunner

import finflow_sb3
from finflow_sb3.cli.app import app
from finflow_sb3.config_files import write_config
from finflow_sb3.errors import ArtefactError, ConfigError, DataError, StorageError
from finflow_sb3.evaluation.learning_plots import Course, learning_plots, moving_mean
from finflow_sb3.plot_runs import plot_runs
from finflow_sb3.runs.history import read_history

EVIL = "<script>alert('$x$')</script>"


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds; tests of words and numbers do without."""
    monkeypatch.setattr("finflow_sb3.plot_runs.learning_plots", lambda *_: {"fine-tuning": None})
    monkeypatch.setattr("finflow_sb3.plot_runs.png_bytes", lambda _: b"png")
    monkeypatch.setattr("finflow_sb3.plot_runs.stacked_png", lambda _: b"png")


def panels(figure: Figure) -> dict[str, list[tuple[list[float], list[float]]]]:
    """Title of each panel → lines drawn in it (x, y), those of marks and of zero left out."""
    return {
        axes.get_title(loc="left"): [
            (list(line.get_xdata()), list(line.get_ydata()))
            for line in axes.get_lines()
            if line.get_marker() not in ("v", "*") and len(line.get_xdata()) != 2
        ]
        for axes in figure.axes
    }


# ------------------------------------------------------------------- reading


def test_a_history_has_the_last_line_of_each_step(tmp_path: Path) -> None:
    lines = [*COURSE, train(2000, q_mean=9.0), validation(3000, 0.8), event(2000)]
    found = read_history(write_run(tmp_path, lines, tail='{"step": 4000, "kind": "tr'))
    assert found.kind == "fine-tuning"
    assert [line["step"] for line in found.train] == [0, 1000, 2000, 3000]
    assert found.series("q_mean") == ([0, 1000, 2000, 3000], [2.0, 2.0, 9.0, 2.0])
    assert found.series("return") == ([1000, 2000, 3000], [1.0, 2.0, 3.0])  # null left out
    assert found.series("validation/sharpe") == ([0, 2000, 3000], [0.5, 0.9, 0.8])
    assert found.series("gates/1")[1] == [0.2] * 4
    assert found.series("gates/7") == found.series("none") == ([], [])
    assert found.best is not None and found.best["step"] == 2000
    assert [e["step"] for e in found.events] == [2000]


def test_epochs_of_pretraining_are_read_alike(tmp_path: Path) -> None:
    found = read_history(write_run(tmp_path, [epoch(1, 0.2), epoch(2, 0.6), epoch(2, 0.4)]))
    assert found.kind == "pretraining"
    assert found.series("q_loss") == ([10, 20], [2.0, 1.0])
    assert found.series("validation/sharpe") == ([10, 20], [0.2, 0.4])
    assert found.best is not None and (found.best["epoch"], found.best["step"]) == (2, 20)


def test_a_best_needs_a_number(tmp_path: Path) -> None:
    found = read_history(write_run(tmp_path, [train(0), validation(0, None)]))
    assert found.best is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no metrics.jsonl in it"),
        ("", "nothing is logged yet"),
        ('{"step": 1', "nothing is logged yet"),
        ('{"step": 1}\nnot json\n', "line 2 is damaged"),
        ('[1]\n{"step": 1}\n', "line 1 is damaged"),
        ('{"step": null}\n', "line 1 is damaged"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ArtefactError, match=words):
        read_history(tmp_path)


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such run"):
        plot_runs(tmp_path / "none")


# ------------------------------------------------------------------- pictures


def course(name: str = "a", **figures: Any) -> Course:
    kept: dict[str, Any] = {"validation/sharpe": ([0, 1, 2], [0.1, 0.4, 0.3]), **figures}
    return Course(name, "fine-tuning", kept)


def test_panels_are_those_that_have_a_figure() -> None:
    figures = {"critic_loss": ([0, 5, 9], [1.0, 2.0, 3.0]), "gates/0": ([0, 1, 2], [0.5] * 3)}
    other = Course("b", "fine-tuning", {"critic_loss": ([3, 4, 5], [4.0, 5.0, 6.0])})
    (figure,) = learning_plots([course(**figures, q_mean=([], [])), other]).values()
    found = panels(figure)
    assert set(found) == {"Validation: Sharpe", "Critic loss", "Gates"}
    assert found["Critic loss"] == [([0, 5, 9], [1, 2, 3]), ([3, 4, 5], [4, 5, 6])]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_smoothing_keeps_what_it_was_made_of() -> None:
    (figure,) = learning_plots([course()], smooth=2).values()
    (axes,) = figure.axes
    faint, smooth = [line for line in axes.get_lines() if line.get_marker() != "*"]
    assert list(faint.get_ydata()) == [0.1, 0.4, 0.3]
    assert list(smooth.get_ydata()) == pytest.approx([0.1, 0.25, 0.35])
    (star,) = [line for line in axes.get_lines() if line.get_marker() == "*"]
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([1], [0.4])


@pytest.mark.parametrize(
    ("count", "mean"), [(1, [3, 1, 2, 6]), (2, [3, 2, 1.5, 4]), (9, [3, 2, 2, 3])]
)
def test_a_moving_mean_begins_with_what_there_is(count: int, mean: list[float]) -> None:
    assert moving_mean([3, 1, 2, 6], count) == pytest.approx(mean)
    assert len(moving_mean([], count)) == 0


@pytest.mark.parametrize("spread", [2.0, 1e4])
def test_a_loss_that_explodes_is_drawn_on_a_log_scale(spread: float) -> None:
    (figure,) = learning_plots([course(critic_loss=(range(4), [1.0, 1.0, 1.0, spread]))]).values()
    scales = {axes.get_title(loc="left"): axes.get_yscale() for axes in figure.axes}
    assert scales["Critic loss"] == ("log" if spread > 100 else "linear")
    assert scales["Validation: Sharpe"] == "linear"


def test_events_are_marked_in_every_panel() -> None:
    marked = Course("a", "fine-tuning", course().figures, events=(1, 2))
    (figure,) = learning_plots([marked, course("b")]).values()
    marks = [m for axes in figure.axes for m in axes.get_lines() if m.get_marker() == "v"]
    assert [list(mark.get_xdata()) for mark in marks] == [[1, 2]]


def test_kinds_whose_steps_differ_are_drawn_apart() -> None:
    other = Course("b", "pretraining", {"q_loss": ([10, 20, 30], [3.0, 2.0, 1.0])})
    found = learning_plots([other, course()])
    assert list(found) == ["fine-tuning", "pretraining"]
    assert [list(panels(f)) for f in found.values()] == [["Validation: Sharpe"], ["Critic loss"]]


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(DataError, match="no figure is logged yet"):
        learning_plots([Course("a", "fine-tuning", {"return": ([], [])})])


def test_the_first_line_alone_is_drawn(tmp_path: Path) -> None:
    """A run that has just begun: one line, no episode, one validation."""
    first = {"step": 0, "kind": "train", "episode": 0}
    plotted = plot_runs(write_run(tmp_path / "run", [first, validation(0, 0.5)]))
    assert plotted.runs[0].train_return is None
    with Image.open(plotted.png) as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


# ------------------------------------------------------------------- the verb


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of fine-tuning, one of them going on, and a pretraining run."""
    folder = tmp_path_factory.mktemp("runs")
    settings = tiny_settings(folder)
    lines = [*COURSE, event(2000, EVIL)]
    made = [
        write_run(folder / "cqsac" / "env_1", lines, tail='{"st'),
        write_run(folder / "cqsac" / "env_2", COURSE[:3]),
        write_run(folder / "iql" / "env_1", [epoch(1, 0.2), epoch(2, 0.4)]),
    ]
    for seed, run in enumerate(made):
        write_config(settings.replace(run={"seed": seed}), run / "config.yml")
    return made


def test_mixed_runs_make_one_picture_and_one_page(runs: list[Path], tmp_path: Path) -> None:
    plotted = finflow_sb3.plot(runs, tmp_path / "out", smooth=2)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "learning_curves.html",
        "learning_curves.png",
    ]
    with Image.open(plotted.png) as image:
        assert image.width == 1500
    first, second, third = plotted.runs
    assert (first.name, first.kind, first.steps) == ("cqsac/env_1, seed 0", "fine-tuning", 3000)
    assert (first.sharpe, first.best_sharpe, first.best_step, first.events) == (0.7, 0.9, 2000, 1)
    assert (first.train_return, first.train_sharpe, first.excess) == (3.0, 0.5, 0.004)
    assert (second.steps, second.best_step) == (1000, 0)
    assert (third.kind, third.sharpe, third.train_return) == ("pretraining", 0.4, None)
    html = plotted.page.read_text()
    page = Page(html)
    assert "script" not in page.tags and EVIL not in html
    assert all(address.startswith("data:image/png;base64,") for address in page.loads)
    assert len(page.loads) == 4  # two kinds, each wide and narrow
    row = next(r for r in page.rows if r[0] == "cqsac/env_1, seed 0")
    words = [cell.replace("\u00a0", " ") for cell in row[1:]]
    assert words == ["3,000", "3.00", "0.50", "0.70", "0.90", "2,000", "0.40 %", "3.0 ×", "1"]
    assert any(f"q_mean: warn: {EVIL}, value 150" in r for r in page.rows for r in r)


def test_the_same_runs_give_the_same_bytes(runs: list[Path], tmp_path: Path) -> None:
    first, second = (plot_runs(runs[2], tmp_path / name) for name in "ab")
    assert first.page.read_bytes() == second.page.read_bytes()
    assert first.png.read_bytes() == second.png.read_bytes()


@pytest.mark.usefixtures("quick")
def test_names_that_would_be_alike_are_whole_paths(tmp_path: Path) -> None:
    made = [write_run(tmp_path / x / "cqsac" / "env_1", COURSE) for x in "ab"]
    assert [run.name for run in plot_runs([*made, made[0]]).runs] == [str(run) for run in made]
    assert (made[0] / "report" / "learning_curves.png").is_file()


@pytest.mark.parametrize(
    ("named", "smooth", "words"), [([], 1, "no run is named"), (["x"], 0, "smooth: 0")]
)
def test_what_makes_no_sense_is_refused(named: list[str], smooth: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plot_runs(named, smooth=smooth)


@pytest.mark.usefixtures("quick")
def test_a_folder_that_cannot_be_written(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another folder with --output"):
        plot_runs(runs, tmp_path / "file")


@pytest.mark.usefixtures("quick")
def test_the_command(runs: list[Path], tmp_path: Path) -> None:
    flags = ["--out", str(tmp_path / "out"), "--smooth", "5"]
    runner = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"})
    result = runner.invoke(app, ["plot", *map(str, runs), *flags])
    assert result.exit_code == 0, result.stderr
    assert "0.700" in result.stdout and "2,000" in result.stdout
    assert result.stdout.splitlines()[-1].endswith(str(tmp_path / "out" / "learning_curves.html"))
    found = json.loads(runner.invoke(app, ["plot", *map(str, runs), *flags, "--json"]).stdout)
    assert [run["steps"] for run in found["runs"]] == [3000, 1000, 20]
    refused = runner.invoke(app, ["plot", str(runs[0]), "--seed", "3"])
    assert refused.exit_code == 1 and "leave out --seed" in refused.stderr
