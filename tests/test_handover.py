"""`benchmarks/handover.py` on a tiny market, and the figures of its report by hand."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learning_fixtures import tiny_settings
from PIL import Image

from finflow_sb3.config import Settings
from finflow_sb3.pipeline import finetune
from finflow_sb3.runs.folder import RunFolder

FOLDER = Path(__file__).parents[1] / "benchmarks"
POINTS = (0, 104, 204)
REMEDIES: dict[str, Any] = {
    "warmup_steps": 60,
    "offline_fraction": 0.25,
    "cal_ql": True,
    "alpha_init": 0.01,
    "target_entropy": "seeded",
    "backup_entropy": False,
}


@pytest.fixture(scope="module")
def handover() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "handover.py"))


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "handover_report.py"))


@pytest.fixture(scope="module")
def measured(
    handover: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, Path]:
    """Two variants of one panel with two seeds."""
    folder = tmp_path_factory.mktemp("handover")
    base = tiny_settings(folder, cqsac=REMEDIES)
    out = folder / "found.jsonl"
    handover["run_all"](base, out, [0, 1], ["packaged"], ["naive", "all"], POINTS)
    return base, out


def cells_of(out: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return {(x["variant"], x["seed"]): x["points"] for x in lines if x["panel"] is not None}


def test_variants_differ_by_their_remedies_alone(handover: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_settings(tmp_path, cqsac={**REMEDIES, "prior_coef": 2.0})
    settings_of = handover["settings_of"]
    assert settings_of(base, "packaged", "all") == base
    naive = settings_of(base, "packaged", "naive")
    assert naive == base.replace(cqsac=handover["NAIVE"])
    assert settings_of(base, "no pull", "naive") == naive.replace(cqsac={"prior_coef": 0.0})
    for remedy, names in handover["REMEDIES"].items():
        kept = {name: getattr(base.cqsac, name) for name in names}
        assert settings_of(base, "packaged", remedy) == naive.replace(cqsac=kept)
    louder = settings_of(base, "packaged", "all, α 0.75")
    assert louder == base.replace(cqsac={"alpha_init": 0.75})


def test_every_variant_starts_from_the_seed_of_its_pretraining(
    measured: tuple[Settings, Path],
) -> None:
    _, out = measured
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    runs = {x["seed"]: x for x in lines if x["panel"] is None}
    cells = cells_of(out)
    assert set(cells) == {(name, seed) for name in ("naive", "all") for seed in (0, 1)}
    for (_, seed), points in cells.items():
        assert [point["point"] for point in points] == list(POINTS)
        for name, value in runs[seed]["validation"].items():
            assert points[0][name] == pytest.approx(value, rel=1e-4)
        assert points[-1]["sharpe"] != points[0]["sharpe"]
    # 4 portfolios, so an update after every fourth step, of those past the 40th or the 60th.
    assert [point["updates"] for point in cells["naive", 0]] == [0, 15, 40]
    assert [point["updates"] for point in cells["all", 0]] == [0, 10, 35]
    assert cells["naive", 0][1]["ent_coef"] == pytest.approx(1.0, rel=0.1)
    assert cells["all", 0][1]["ent_coef"] == pytest.approx(0.01, rel=0.1)


def test_a_cell_is_the_start_of_the_run_that_finetune_makes(
    handover: dict[str, Any], measured: tuple[Settings, Path]
) -> None:
    """A point is met one step of the batch after the boundary where `finetune` validates."""
    base, out = measured
    settings = handover["settings_of"](base, "packaged", "all")
    logs = Path(settings.run.log_dir)
    seeded = out.with_suffix("") / "seed_0" / "iql" / "finflow-US20-v0_1"
    run = finetune(settings.replace(run={"log_dir": str(logs)}), seeded).run
    lines = [json.loads(line) for line in RunFolder(run).metrics.read_text().splitlines()]
    validated = {x["step"]: x["sharpe"] for x in lines if x["kind"] == "validation"}
    for point in cells_of(out)["all", 0][1:]:
        assert point["sharpe"] == validated[point["step"] - settings.cqsac.n_envs]


def test_what_is_there_is_not_run_again(
    handover: dict[str, Any], measured: tuple[Settings, Path]
) -> None:
    base, out = measured
    before = out.read_bytes()
    handover["run_all"](base, out, [1, 0], ["packaged"], ["all"], POINTS)
    assert out.read_bytes() == before
    with pytest.raises(SystemExit, match="other settings"):
        handover["run_all"](base, out, [0], ["packaged"], ["all"], (0, 104))
    other = base.replace(iql={"epochs": 1})
    with pytest.raises(SystemExit, match="other settings"):
        handover["run_all"](other, out, [0], ["packaged"], ["all"], POINTS)


def test_tables_and_picture(
    report: dict[str, Any], measured: tuple[Settings, Path], tmp_path: Path
) -> None:
    _, out = measured
    records = [json.loads(line) for line in out.read_text().splitlines()]
    lines = report["tables"](records).splitlines()
    cells = cells_of(out)
    changes = [100.0 * np.diff([p["annual_return"] for p in cells["all", s]]) for s in (0, 1)]
    first = [change[0] for change in changes]
    half = 12.7062 * abs(first[0] - first[1]) / 2.0
    wanted = f"| all | {np.mean(first):+.2f} ± {half:.2f} |".replace("-", "−")
    assert any(line.startswith(wanted) for line in lines)
    report["draw"](records, tmp_path / "handover.png")
    picture = Image.open(io.BytesIO((tmp_path / "handover.png").read_bytes()))
    assert picture.width == 1500 and len(picture.convert("RGB").getcolors(2**24) or []) > 4


def test_shortfall_and_interval_by_hand(report: dict[str, Any]) -> None:
    """From 1 below to level over 100 steps, then over it: (100·1/2 + 0)/300."""
    steps = np.array([0.0, 100.0, 300.0])
    values = np.array([[4.0, 5.0, 7.0], [5.0, 5.0, 5.0]])
    assert report["mean_shortfall"](steps, values, 5.0) == pytest.approx([50.0 / 300.0, 0.0])
    own = report["mean_shortfall"](steps, np.array([[4.0, 2.0, 4.0]]), np.array([[4.0]]))
    assert own == pytest.approx([1.0])
    mean, half = report["interval"](np.array([[1.0], [3.0]]))
    assert (mean[0], half[0]) == (2.0, pytest.approx(12.7062, abs=1e-3))
    assert np.isnan(report["interval"](np.array([[1.0]]))[1]).all()
