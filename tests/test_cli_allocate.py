"""`finflow allocate` and `finflow export` as a user calls them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from allocation_fixtures import HOLDINGS, ROWS, frame, last_day, trained_run
from typer.testing import CliRunner

from finflow_sb3.allocate import allocate
from finflow_sb3.allocation.holdings import Holdings
from finflow_sb3.cli.app import app
from finflow_sb3.cli.console import out, set_quiet


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    yield
    set_quiet(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("desk")
    frame().to_csv(path / "latest.csv")
    frame()[["S03", "S01", "S00", "S04", "S02"]].to_csv(path / "shuffled.csv")
    frame().iloc[: ROWS - 6].to_csv(path / "stale.csv")
    (path / "holdings.csv").write_text(HOLDINGS)
    return path


def run(*args: Any, width: int = 110) -> Any:
    before, out._width = out._width, width
    try:
        return CliRunner(env={"NO_COLOR": "1"}).invoke(app, [str(arg) for arg in args])
    finally:
        out._width = before


def fine(*args: Any, **how: Any) -> str:
    result = run(*args, **how)
    assert result.exit_code == 0, f"{result.stderr}{result.exception!r}"
    return str(result.stdout)


def asked(folder: Path, prices: str = "latest.csv") -> list[Any]:
    files = ["--prices", folder / prices, "--holdings", folder / "holdings.csv"]
    return ["allocate", trained_run(), *files, "--as-of", last_day()]


def test_does_what_one_call_does(folder: Path, tmp_path: Path) -> None:
    flags = ["--lot", "0.1", "--min-order", "20", "--trade-rate", "0.5", "--peak", "20000"]
    text = fine(*asked(folder), *flags, "--out", tmp_path / "orders", "--json")
    found = json.loads(text)
    library = allocate(
        trained_run(),
        folder / "latest.csv",
        folder / "holdings.csv",
        lot="0.1",
        min_order=20,
        trade_rate=0.5,
        peak=20_000,
        as_of=last_day(),
        out=tmp_path / "orders",
    )
    assert found == json.loads(json.dumps(library.as_dict()))
    assert library.orders and library.trade_rate == 0.5
    assert sorted(p.name for p in (tmp_path / "orders").iterdir()) == [
        "allocation.json",
        "orders.csv",
    ]


def test_shuffled_columns_give_the_same_orders(folder: Path) -> None:
    names = ("latest.csv", "shuffled.csv")
    found = [json.loads(fine(*asked(folder, name), "--json")) for name in names]
    for each in found:
        del each["prices"]
    assert found[0] == found[1] and any(each["order"] for each in found[0]["positions"])


def test_the_table_tells_all(folder: Path) -> None:
    text = fine(*asked(folder), "--trade-rate", "1")
    library = allocate(
        trained_run(),
        frame(),
        Holdings({"S03": 40, "S00": "25.5", "S01": 3}, "1234.56"),  # type: ignore[dict-item, arg-type]
        trade_rate=1.0,
        as_of=last_day(),
    )
    assert f"Close of {last_day()}; prices from" in text
    for each in library.positions:
        row = next(line for line in text.splitlines() if line.strip().startswith(each.asset))
        if each.order and each.asset != "CASH":
            assert f"{each.amount:+,.2f}".replace("-", "−") in row and f"{each.cost:,.2f}" in row
    assert f"Value {library.value:,.2f}; {len(library.orders)} orders" in text
    assert f"expected costs {library.costs:,.2f}" in text
    words = " ".join(text.replace("\u00a0", " ").split())
    for sentence in (*library.lines, *library.notes):
        assert " ".join(sentence.replace("\u00a0", " ").split()) in words


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_figure_is_cut_off(folder: Path, width: int, terminal: bool) -> None:
    """Narrow terminals lose columns; a file or pipe has all, however narrow."""
    asked = ["allocate", trained_run(), "--prices", folder / "latest.csv", "--as-of", last_day()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(out, "_force_terminal", terminal)
        text = fine(*asked, "--cash", "1000000", width=width)
    library = allocate(trained_run(), frame(), cash=1_000_000, as_of=last_day())
    assert "…" not in text and library.orders
    for each in library.orders:
        row = next(line for line in text.splitlines() if line.strip().startswith(each.asset))
        assert f"{each.order:+,f}".replace("-", "−") in row
        assert f"{each.amount:+,.2f}".replace("-", "−") in row
        assert (f"{each.cost:,.2f}" in row) or (terminal and width < 80)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prices", "stale.csv"], "business days before"),
        (["--seed", "3"], "a run allocates with its own config.yml; leave out --seed"),
        (["--cash", "5"], "has a row CASH beside --cash"),
        (["--lot", "0"], "--lot: 0 is no size"),
    ],
)
def test_refusals_are_one_line(folder: Path, args: list[str], message: str) -> None:
    given = [folder / arg if arg.endswith(".csv") else arg for arg in args]
    result = run(*asked(folder), *given)
    assert result.exit_code == 1 and result.stdout == ""
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_export_says_what_goes_in(tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    text = fine("export", trained_run(), "--onnx", path, width=200)
    assert path.is_file() and "opset 18" in text
    assert "in   weights [batch, 6]" in text and "out  target" in text


def test_export_refuses_what_has_no_effect(tmp_path: Path) -> None:
    result = run("export", trained_run(), "--onnx", tmp_path / "p.onnx", "--seed", "1")
    assert result.exit_code == 1 and "leave out --seed" in result.stderr
