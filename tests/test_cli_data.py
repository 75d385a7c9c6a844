"""`finflow data`: results on stdout, errors in one line, and the file that an import leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from finflow_sb3.cli.app import app
from finflow_sb3.market.sources import load_prices

WIDE = "date,AAA,BBB\n2020-01-02,100,10\n2020-01-03,110,\n2020-01-07,99,12\n"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prices.csv"
    path.write_text(WIDE)
    return path


def test_list() -> None:
    done = run("list")
    assert done.exit_code == 0
    for name in ("us20", "PATH", "yahoo:SYMBOL,..."):
        assert name in done.stdout
    assert "finflow-sb3[yahoo]" in " ".join(done.stdout.split())


def test_list_as_json() -> None:
    done = run("list", "--json")
    listed = json.loads(done.stdout)
    assert [entry["name"] for entry in listed] == ["us20", "PATH", "yahoo:SYMBOL,..."]
    assert all(entry["description"] for entry in listed)


def test_info(file: Path) -> None:
    done = run("info", str(file))
    assert done.exit_code == 0
    assert f"{file}: 2 assets, 3 rows, 2020-01-02 to 2020-01-07" in done.stdout
    assert "longest gap: 4 days, 2020-01-03 to 2020-01-07" in done.stdout
    assert "forward-filled closes: 1" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "AAA" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    # Two returns of +10 % and -10 %: 0.1·√(2·252) = 224.5 %, and 0.99^126 - 1 = -71.8 %.
    assert cells == ["AAA", "-71.8%", "224.5%", "10.0%", "0"]
    assert "survivors" not in done.stdout


def test_info_as_json(file: Path) -> None:
    found = json.loads(run("info", str(file), "--json").stdout)
    assert found["assets"] == ["AAA", "BBB"]
    assert found["filled"] == {"AAA": 0, "BBB": 1}
    assert found["max_drawdown"]["AAA"] == pytest.approx(0.1)
    assert found["survivorship_note"] is None


def test_info_warns_of_survivors() -> None:
    assert "survivors" in run("info", "us20").stdout
    assert "survivors" in json.loads(run("info", "us20", "--json").stdout)["survivorship_note"]


def test_import_writes_beside_the_file(file: Path) -> None:
    done = run("import", str(file))
    assert done.exit_code == 0
    written = file.with_suffix(".parquet")
    assert f"Wrote {written}" in done.stdout
    back = load_prices(written)
    np.testing.assert_array_equal(back.close, [[100, 10], [110, 10], [99, 12]])
    assert back.filled.tolist() == [0, 1]


def test_import_to_a_named_file_as_json(file: Path) -> None:
    target = file.parent / "clean" / "market.parquet"
    done = run("import", str(file), "--output", str(target), "--json")
    found = json.loads(done.stdout)
    assert found["output"] == str(target)
    assert found["rows"] == 3
    assert load_prices(target).assets == ("AAA", "BBB")


def test_max_gap(file: Path) -> None:
    done = run("info", str(file), "--max-gap", "0")
    assert done.exit_code == 1
    assert "max_gap is 0" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("info", "absent.csv"), "absent.csv: no such file"),
        (("info", "us2O"), "did you mean 'us20'"),
        (("import", "us20"), "--output"),
        (("import", "prices.parquet"), "--output"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("cell", ["0", "text"])
def test_a_refused_file_leaves_nothing(file: Path, cell: str) -> None:
    file.write_text(WIDE.replace("110", cell))
    done = run("import", str(file))
    assert done.exit_code == 1
    assert f"{file}: column 'AAA', line 3" in done.stderr
    assert [path.name for path in file.parent.iterdir()] == ["prices.csv"]


def test_usage_errors_exit_with_2(file: Path) -> None:
    assert run("info").exit_code == 2
    assert run("info", str(file), "--max-gap", "-1").exit_code == 2


def test_assets_that_come_and_go(file: Path) -> None:
    file.write_text("date,AAA,BBB\n2020-01-02,100,\n2020-01-03,110,10\n2020-01-07,,12\n")
    refused = run("info", str(file))
    assert refused.exit_code == 1
    assert "'AAA' ends inside" in refused.stderr
    assert "--partial" in refused.stderr
    done = run("info", str(file), "--partial")
    rows = [line.strip("│").split("│") for line in done.stdout.splitlines() if "│" in line]
    days = {row[0].strip(): (row[1].strip(), row[2].strip()) for row in rows}
    assert days == {"AAA": ("2020-01-02", "2020-01-03"), "BBB": ("2020-01-03", "2020-01-07")}
    found = json.loads(run("info", str(file), "--partial", "--json").stdout)
    assert found["first_listed"] == {"AAA": "2020-01-02", "BBB": "2020-01-03"}
    imported = run("import", str(file), "--partial")
    written = file.with_suffix(".parquet")
    assert f"--prices {written} -p market.partial:true" in imported.stdout
    assert load_prices(written, partial=True).listed is not None
