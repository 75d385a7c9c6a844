"""`finflow data describe`: tables that fit, JSON, a picture, and errors in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from markets import random_prices, small_market
from PIL import Image
from typer.testing import CliRunner, Result

from finflow_sb3.cli import console
from finflow_sb3.cli.app import app
from finflow_sb3.config import CollectSettings, EnvSettings
from finflow_sb3.market.sources import write_prices
from finflow_sb3.offline.collect import collect_dataset
from finflow_sb3.offline.dataset_file import read_dataset, write_dataset


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", "describe", *map(str, arguments)])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.h5"
    env = EnvSettings(episode_length=12)
    collect = CollectSettings(episodes=16, n_envs=16)
    write_dataset(collect_dataset(small_market(), env, collect, seed=0), path)
    return path


def test_tables_fit_into_80_columns(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 80)
    monkeypatch.chdir(file.parent)
    done = run(file.name)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("d.h5: 192 transitions in 16 episodes, ")
    assert "market rows 2" in lines[1] and "5 assets: S00, S01" in lines[1]
    assert max(len(line) for line in lines if line.startswith(" ")) <= 80
    assert max(map(len, lines)) <= 100
    row = next(line for line in lines if line.strip().startswith("cash heavy"))
    assert row.split()[2:4] == ["2", "24"]
    assert "16 episodes only" in done.stdout
    assert "…" not in row


@pytest.mark.parametrize("name", ["A[bold]", "[/b]", "[red]"])
def test_names_are_no_markup(file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(console.out, "width", 100)
    data = read_dataset(file)
    layout = dataclasses.replace(data.layout, assets=(name, *data.layout.assets[1:]))
    path = file.with_name("named.h5")
    write_dataset(dataclasses.replace(data, layout=layout), path)
    done = run(path)
    assert done.exit_code == 0, done.output
    assert any(line.strip().startswith(f"tilt {name} ") for line in done.stdout.splitlines())


def test_json_has_all(file: Path) -> None:
    found = json.loads(run(file, "--json").stdout)
    assert (found["transitions"], found["episodes"], found["timeouts"]) == (192, 16, 16)
    assert found["first_date"] is None
    assert len(found["behaviours"]) == 8
    assert set(found["behaviours"][0]["episode_return"]) == {
        "mean", "minimum", "q05", "q25", "median", "q75", "q95", "maximum"
    }  # fmt: skip
    assert sum(found["coverage"]["dimensions"][0]["counts"]) == 192
    assert found["size"] == file.stat().st_size


def test_prices_give_dates(file: Path) -> None:
    prices = write_prices(random_prices(5, 600), file.parent / "prices.parquet")
    found = json.loads(run(file, "--json", "--prices", prices).stdout)
    assert found["first_date"] == str(random_prices(5, 600).dates[found["first_row"]])


def test_a_picture(file: Path) -> None:
    done = run(file, "--plot", file.parent / "plot.png", "--quiet")
    assert done.exit_code == 0, done.output
    assert f"Picture: {file.parent / 'plot.png'}" in done.stdout
    with Image.open(file.parent / "plot.png") as image:
        assert image.width == 1500
        assert len(image.convert("RGB").getcolors(10**6)) > 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("absent.h5",), "absent.h5: no such dataset; write one with finflow collect"),
        (("{file}", "--plot", "plot.pdf"), "plot.pdf: pictures are written as PNG"),
        (("{file}", "--prices", "us20"), "give the prices that it was collected on"),
        (("{file}", "--prices", "absent.csv"), "absent.csv: no such file"),
    ],
)
def test_errors_are_one_line(file: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(*(argument.format(file=file) for argument in arguments))
    assert done.exit_code == 1
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
