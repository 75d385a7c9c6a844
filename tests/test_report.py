"""Pictures and the report: what is drawn, what is said, and that it is safe to open."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from report_fixtures import Page, curve, report

from finflow_sb3.errors import DataError, StorageError
from finflow_sb3.evaluation import plot_style, plots
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import measures
from finflow_sb3.evaluation.report import write_report
from finflow_sb3.evaluation.report_numbers import COLUMNS, number
from finflow_sb3.files import write_whole

PNGS = {"equity.png", "drawdown.png", "rolling_sharpe.png", "weights.png", "gates.png"}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds; tests of words and numbers do without."""
    monkeypatch.setattr("finflow_sb3.evaluation.report.png_bytes", lambda figure: b"png")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(report(), tmp_path_factory.mktemp("report")).index.parent


@pytest.mark.usefixtures("quick")
def test_writes_what_it_says_and_nothing_else(tmp_path: Path) -> None:
    found = write_report(report(), tmp_path / "a" / "report")
    names = {path.name for path in (found.index, found.metrics, *found.pictures)}
    assert names == {"index.html", "metrics.json"} | PNGS
    assert names == set(os.listdir(tmp_path / "a" / "report"))


def test_same_input_same_bytes(written: Path, tmp_path: Path) -> None:
    write_report(report(), tmp_path)
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_table_has_every_curve_with_its_figures(written: Path) -> None:
    page = Page((written / "index.html").read_text(encoding="utf-8"))
    names = ("CQSAC", "Equal weight", "Buy and hold", "Anchors' average", "Anchor: momentum")
    rows = [row for row in page.rows if len(row) == 1 + len(COLUMNS)]
    for name in names:
        assert len([row for row in rows if row[0] == name]) == 2
    expected = measures(report().policy[1])
    row = [row for row in rows if row[0] == "CQSAC"][1]
    assert row[4] == number(expected["sharpe"], "ratio")
    assert row[7] == number(expected["max_drawdown"], "percent")


def test_page_says_what_was_run(written: Path) -> None:
    text = " ".join(Page((written / "index.html").read_text(encoding="utf-8")).words)
    for part in (
        "CQSAC on three stocks",
        "cqsac/Toy_1",
        "finflow evaluate logs/cqsac/Toy_1",
        "2017-01-02",
        "alpha_init",
        "A first note.",
        "10 bps",
    ):
        assert part in text
    assert "Mind the universe" not in text


def test_metrics_file_holds_all_measures(written: Path) -> None:
    content = json.loads((written / "metrics.json").read_text(encoding="utf-8"))
    source = report()
    assert content["settings"] == source.settings
    assert content["extra"] == {"Gradient steps": 12}
    assert content["splits"]["test"] == ["2019-01-01", "2019-10-28"]
    assert len(content["curves"]) == 10
    for found, of in zip(content["curves"], (*source.policy, *source.baselines), strict=True):
        assert (found["name"], found["execution_lag"]) == (of.name, of.execution_lag)
        assert found["role"] == ("policy" if of.name == "cqsac" else "baseline")
        assert found["measures"] == measures(of)


@pytest.mark.usefixtures("quick")
def test_cash_rate_reaches_every_sharpe(tmp_path: Path) -> None:
    rate = np.full(300, 0.0002)
    source = report(cash_rate=rate)
    found = write_report(source, tmp_path)
    ours, theirs = (measures(c, rate)["sharpe"] for c in (source.policy[0], source.baselines[0]))
    assert found.verdict.sharpe.difference == pytest.approx(ours - theirs)
    assert f"Sharpe ratio of {ours:.2f} against {theirs:.2f}".replace("-", "−") in (
        found.verdict.sentence
    )
    content = json.loads(found.metrics.read_text(encoding="utf-8"))
    assert content["curves"][0]["measures"]["sharpe"] == pytest.approx(ours)


@pytest.mark.parametrize(("edge", "start"), [(0.002, "Better"), (-0.002, "Worse")])
@pytest.mark.usefixtures("quick")
def test_verdict_of_a_clear_edge(edge: float, start: str, tmp_path: Path) -> None:
    found = write_report(report(edge=edge), tmp_path)
    assert found.verdict.headline == f"{start} than equal weight"
    assert found.verdict.sentence in found.index.read_text(encoding="utf-8")


@pytest.mark.parametrize("days", [1, 126])
def test_short_test_split(days: int, tmp_path: Path) -> None:
    found = write_report(report(days=days), tmp_path)
    assert {p.name for p in found.pictures} == PNGS - {"rolling_sharpe.png"}
    content = json.loads(found.metrics.read_text(encoding="utf-8"))
    if days == 1:
        assert content["curves"][0]["measures"]["sharpe"] is None
        assert found.verdict.headline == "Cannot be compared"


@pytest.mark.usefixtures("quick")
def test_no_lag_1_and_no_gates(tmp_path: Path) -> None:
    source = report(policy=(curve("iql"),), baselines=(curve("equal_weight"),))
    found = write_report(source, tmp_path)
    assert {p.name for p in found.pictures} == PNGS - {"gates.png"}
    assert "Lag 1" not in Page(found.index.read_text(encoding="utf-8")).words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": ()}, "lags \\[\\]"),
        ({"policy": (curve("cqsac", 1),)}, "0 included"),
        ({"policy": (curve("a"), curve("b"))}, "one a lag"),
        ({"baselines": (curve("equal_weight", 1),)}, "no equal_weight curve at lag 0"),
        ({"baselines": (curve("equal_weight"),) * 2}, "equal_weight at lag 0 stands twice"),
        ({"splits": {"test": ("soon", "later")}}, "test split .* holds no two dates"),
        ({"baselines": (curve("equal_weight", days=299),)}, "equal_weight at lag 0 has other days"),
    ],
)
def test_incomplete_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        report(**changes)


@pytest.mark.usefixtures("quick")
def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match="could not be written"):
        write_report(report(), tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a file"


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match="disk full"):
        write_whole(path, b"new")
    assert os.listdir(tmp_path) == ["a.png"] and path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (-0.1234, "percent", "−12.3\u00a0%"),
        (-0.0001, "percent", "0.0\u00a0%"),
        (0.00194, "fine", "0.19\u00a0%"),
        (0.945, "ratio", "0.94"),
        (1.94, "times", "1.9\u00a0×"),
        (0.02615, "plain", "0.0261"),
        (1.5, "plain", "1.50"),
        (float("nan"), "ratio", "–"),
    ],
)
def test_number(value: float, kind: str, text: str) -> None:
    assert number(value, kind) == text


DRAWINGS: dict[str, Callable[[list[Curve], float], Figure]] = {
    "equity": plots.equity_plot,
    "drawdown": plots.drawdown_plot,
    "rolling": plots.rolling_sharpe_plot,
    "weights": lambda curves, width: plots.weights_plot(curves[0], width),
    "gates": lambda curves, width: plots.gates_plot(curves[0], width),
}


@pytest.mark.parametrize("drawing", DRAWINGS)
@pytest.mark.parametrize(("n", "days", "width"), [(20, 2600, 10.0), (500, 200, 4.6), (2, 130, 10)])
def test_pictures(drawing: str, n: int, days: int, width: float, tmp_path: Path) -> None:
    curves = [curve("cqsac", 0, days, n, gates=True), curve("equal_weight", 0, days, n)]
    figure = DRAWINGS[drawing](curves, width)
    plots.save_png(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == round(150 * width)
        assert len(image.convert("RGB").getcolors(10**6)) > 10
    ticks = [t.get_text() for t in figure.axes[0].get_xticklabels() if t.get_text()]
    assert 2 <= len(ticks) <= 13
    if days > 1000:
        assert all(re.fullmatch(r"20\d\d", tick) for tick in ticks)


@pytest.mark.parametrize(
    ("n", "names"),
    [(2, 2), (8, 8), (20, 9), (500, 10)],
)
def test_weights_stack_to_one(n: int, names: int) -> None:
    source = curve("cqsac", n=n)
    figure = plots.weights_plot(source)
    bands = figure.axes[0].collections
    assert len(bands) == names + 1
    top = bands[-1].get_paths()[0].vertices[:, 1]
    assert top.max() == pytest.approx(1.0)
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts[0].startswith("cash")
    assert texts[-1].startswith(source.assets[int(source.weights[:, :n].mean(axis=0).argmax())])


def test_a_name_has_one_colour() -> None:
    assert plot_style.colour("anchor: growth") == plot_style.colour("growth")
    assert plot_style.colour("mine") == plot_style.colour("mine")


def test_gates_need_gates() -> None:
    with pytest.raises(DataError, match="has no gates"):
        plots.gates_plot(curve("equal_weight"))


def test_nothing_to_draw() -> None:
    with pytest.raises(DataError, match="nothing to draw"):
        plots.equity_plot([])


def test_ruin_is_drawn() -> None:
    ruined = curve("cqsac")
    ruined.returns[100:] = -1.0
    plots.png_bytes(plots.equity_plot([ruined]))


@pytest.mark.parametrize(
    ("ends", "places"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.9, 0.1, 0.12], [0.9, 0.06, 0.16]),
        ([0.5, 0.52, 0.54], [0.42, 0.52, 0.62]),
    ],
)
def test_labels_keep_apart(ends: list[float], places: list[float]) -> None:
    np.testing.assert_allclose(plot_style.spread(np.array(ends), 0.1), places)


def test_pyplot_is_left_alone() -> None:
    code = "import sys, finflow_sb3.evaluation.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
