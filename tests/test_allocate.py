"""From a run, the latest prices and holdings to orders in shares."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from allocation_fixtures import (
    HOLDINGS,
    NEEDED,
    ROWS,
    TRAINED,
    frame,
    last_day,
    partial_frame,
    partial_run,
    table,
    trained_run,
)

from finflow_sb3.allocate import allocate
from finflow_sb3.allocation.holdings import Holdings
from finflow_sb3.allocation.market import latest_market
from finflow_sb3.allocation.result import Allocation
from finflow_sb3.ensembles import load_policies
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import observe
from finflow_sb3.errors import ConfigError, DataError, FinflowError
from finflow_sb3.evaluation.backtest import lagged
from finflow_sb3.evaluation.ensemble import Ensemble
from finflow_sb3.market.sources import load_prices
from finflow_sb3.market.splits import Span, Splits

HELD = {"S03": Decimal(40), "S00": Decimal("25.5"), "S01": Decimal(3)}
LATER = (pd.Timestamp(last_day()) + pd.tseries.offsets.BDay(1)).date()


def decide(run: Path, prices: Any = None, **more: Any) -> Allocation:
    """`allocate` on the last day, of `HELD` where nothing else is said."""
    if "cash" not in more and "holdings" not in more:
        more["holdings"] = Holdings(HELD, Decimal("1234.56"))
    more.setdefault("as_of", last_day())
    return allocate(run, frame() if prices is None else prices, **more)


def figures(found: Allocation) -> dict[str, Any]:
    """All but where the prices came from."""
    return {**found.as_dict(), "prices": None}


def longer(prices: pd.DataFrame) -> pd.DataFrame:
    return prices.melt(ignore_index=False, var_name="ticker", value_name="close").reset_index()


FORMS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "shuffled": lambda prices: prices[["S02", "S04", "S00", "S03", "S01"]],
    "long form": longer,
    "recent": lambda prices: prices.tail(NEEDED),
    "recent, from another day": lambda prices: prices.tail(NEEDED + 10),
}


class TestPrices:
    @pytest.mark.parametrize("form", list(FORMS))
    def test_their_form_changes_no_order(self, form: str) -> None:
        run = trained_run()
        assert figures(decide(run, FORMS[form](frame()))) == figures(decide(run))

    @pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
    def test_files(self, ending: str, tmp_path: Path) -> None:
        run, path = trained_run(), tmp_path / f"latest{ending}"
        if ending == ".parquet":
            frame().reset_index().to_parquet(path)
        else:
            frame().to_csv(path)
        assert figures(decide(run, path)) == figures(decide(run))

    @pytest.mark.parametrize("rows", [NEEDED, NEEDED + 5, ROWS])
    def test_the_policy_sees_what_it_would_in_the_whole_history(self, rows: int) -> None:
        run = trained_run()
        settings = load_policies(run).settings
        whole = observe(table(), settings.market, settings.env_kwargs, load_policies(run).scaler)
        now = latest_market(run, frame().tail(rows), last_day())
        assert len(now.prices) <= NEEDED
        np.testing.assert_allclose(now.frames[-1], whole.frames[-1], atol=1e-5)
        np.testing.assert_allclose(now.anchors.at(-1), whole.anchors.at(ROWS - 1), atol=1e-9)

    def test_a_history_from_the_first_day_on_is_long_enough(self) -> None:
        """However short it is, there is no more of it; policies were trained on days like it."""
        day = str(table().dates[NEEDED - 60])
        found = allocate(trained_run(), frame(), cash=1000, as_of=day)
        assert found.date == day and any("no forecast" in note for note in found.notes)

    def test_later_prices_are_not_seen(self) -> None:
        run, prices = trained_run(), frame()
        changed = prices.copy()
        changed.iloc[-5:] *= np.linspace(0.5, 2.0, 5)[:, None]
        day = str(table().dates[ROWS - 6])
        assert figures(decide(run, changed, as_of=day)) == figures(decide(run, prices, as_of=day))

    @pytest.mark.parametrize("prices", [frame, partial_frame])
    def test_a_later_price_fills_no_gap(self, prices: Callable[[], pd.DataFrame]) -> None:
        """Without a close on the day itself there is none, whatever comes after it."""
        run = trained_run() if prices is frame else partial_run()
        holed = prices()
        holed.iloc[ROWS - 3, 1] = np.nan
        day = str(table().dates[ROWS - 3])
        found = []
        for rows in (ROWS, ROWS - 2):
            try:
                found.append(figures(decide(run, holed.iloc[:rows], cash=10_000, as_of=day)))
            except DataError as error:
                found.append({"refused": str(error)})
        assert found[0] == found[1]
        assert ("refused" in found[0]) == (prices is frame)

    def test_closes_in_cents_are_the_same_past(self) -> None:
        """Prices near 30 to whole cents: returns are off by up to 0.0003."""
        run, cents = trained_run(), (frame() / 3).round(2)
        exact = (frame() / 3).pct_change().iloc[1:TRAINED]
        assert (cents.pct_change().iloc[1:TRAINED] - exact).abs().to_numpy().max() > 1e-4
        assert decide(run, cents).value > 0
        with pytest.raises(FinflowError, match="days differ"):
            decide(run, cents.assign(S00=frame()["S00"] * 1.0))

    def test_copies_of_the_last_day_are_no_new_prices(self) -> None:
        copied = frame()
        copied.iloc[-2:] = copied.iloc[-3].to_numpy()
        found = decide(trained_run(), copied)
        assert found.age == 2
        assert any(f"No price has moved since {table().dates[-3]}" in each for each in found.notes)
        with pytest.raises(DataError, match=r"last day with a move, .* is 2 business days"):
            decide(trained_run(), copied, max_age=1)

    def test_closes_may_have_been_adjusted_once_more(self) -> None:
        run, quoted = trained_run(), longer(frame()).rename(columns={"close": "raw_close"})
        factors = quoted.ticker.map({"S00": 0.98, "S01": 0.5}).fillna(1.0)
        plain = quoted.assign(close=quoted.raw_close)
        adjusted = quoted.assign(close=quoted.raw_close * factors)
        one, two = decide(run, plain), decide(run, adjusted)
        assert [p.after for p in one.positions] == [p.after for p in two.positions]

    def test_raw_closes_count_the_shares(self) -> None:
        run, long = trained_run(), longer(frame())
        split = long.assign(adj_close=long.close, close=long.close * 4.0)
        one, four = (decide(run, each, cash=10_000, trade_rate=1.0) for each in (long, split))
        assert (one.price_kind, four.price_kind) == ("close", "raw close")
        quoted = {each.asset: each for each in four.positions[:-1]}
        for a in one.positions[:-1]:
            b = quoted[a.asset]
            assert float(b.price) == pytest.approx(4 * float(a.price))
            assert abs(b.amount - a.amount) <= (a.price + b.price) / 2 + Decimal("0.01")
        assert any("no raw closes" in note for note in one.notes)
        assert not any("no raw closes" in note for note in four.notes)

    def test_a_raw_close_that_is_missing_is_refused(self) -> None:
        quoted = longer(frame()).assign(raw_close=lambda table: table.close)
        last = quoted.index[(quoted.ticker == "S01") & (quoted.date == quoted.date.max())]
        quoted.loc[last, "raw_close"] = np.nan
        with pytest.raises(DataError, match=f"raw close of S01 on {last_day()} is missing"):
            decide(trained_run(), quoted)

    def test_a_gap_to_the_past_is_said(self) -> None:
        run = trained_run()
        prices = frame().tail(25)
        before = frame().iloc[:-25] * 1.0
        gone = pd.concat([before, prices])
        gone.index = gone.index + pd.Timedelta(days=3650)
        day = str(gone.index[-1].date())
        found = decide(run, gone, as_of=day)
        assert any("0 days in common" in note for note in found.notes)
        assert not any("in common" in note for note in decide(run).notes)


def without_a_day(prices: pd.DataFrame) -> pd.DataFrame:
    return prices.drop(index=prices.index[500])


def revised(prices: pd.DataFrame) -> pd.DataFrame:
    out = prices.copy()
    out.iloc[600:, 2] *= 1.01
    return out


def split(prices: pd.DataFrame) -> pd.DataFrame:
    """Two for one on the day before the last, after all days that can be compared."""
    out = prices.copy()
    out.iloc[-2:, 1] /= 2.0
    return out


def ending(day: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda prices: prices.iloc[:day]


YEARS = pd.Timedelta(days=36_500)
REFUSED: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], dict[str, Any], str]] = {
    "missing": (lambda p: p.drop(columns="S02"), {}, "lacks S02, against the 5 assets"),
    "foreign": (lambda p: p.assign(XYZ=p["S00"]), {}, "adds XYZ, against the 5 assets"),
    "renamed": (lambda p: p.rename(columns={"S01": "B"}), {}, "lacks S01 and adds B"),
    "stale": (ending(ROWS - 6), {}, f"its last day, {table().dates[ROWS - 7]}, is 6 business"),
    "short": (lambda p: p.tail(NEEDED - 50), {}, f"has {NEEDED - 50} days up to {last_day()}"),
    "revised": (revised, {}, f"S02 returned .* on {table().dates[600]}"),
    "jumping": (split, {}, rf"S01 returned -\d\d.\d% on {table().dates[-2]}, beyond --max-move"),
    "other days": (without_a_day, {}, f"has no row for {table().dates[500]}"),
    "years ago": (lambda p: p, {"as_of": None}, "business days before"),
    "from the future": (lambda p: p.set_axis(p.index + YEARS), {"as_of": None}, "lies after today"),
    "before it begins": (
        lambda p: p,
        {"as_of": "1990-01-01"},
        "has 0 rows of prices up to",
    ),
    "with a cash rate": (lambda p: p.assign(cash_rate=1e-4), {}, "has a cash rate and .* none"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_prices_that_do_not_fit_are_refused_by_name(case: str) -> None:
    change, more, message = REFUSED[case]
    with pytest.raises(FinflowError, match=message) as caught:
        decide(trained_run(), change(frame()), **more)
    assert "\n" not in str(caught.value)


def test_limits_let_older_and_revised_prices_pass() -> None:
    run, day = trained_run(), str(LATER)
    assert decide(run, ending(ROWS - 6)(frame()), as_of=day, max_age=7).age == 7
    with pytest.raises(DataError, match="--max-age is 6"):
        decide(run, ending(ROWS - 6)(frame()), as_of=day, max_age=6)
    assert decide(run, revised(frame()), max_revision=0.011).value > 0
    assert decide(run, split(frame()), max_move=0.6).value > 0


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"lot": 0}, "--lot: 0 is no size"),
    ({"lot": "a"}, "--lot: 'a' is no number"),
    ({"min_order": -1}, "--min-order: -1 is no number from 0 on"),
    ({"trade_rate": 1.5}, "--trade-rate: 1.5 is out of range"),
    ({"max_age": -1}, "--max-age: -1 is out of range"),
    ({"max_revision": float("nan")}, "--max-revision: nan is out of range"),
    ({"max_move": 0.0}, "--max-move: 0.0 is out of range"),
    ({"lot": "1e-9999999"}, "--lot: 1E-9999999 is out of range"),
    ({"peak": "1e40"}, "--peak: 1E.40 is out of range"),
    ({"cash": 1e26}, "--cash: 1E.26 is out of range"),
    ({"as_of": "soon"}, "--as-of: 'soon' is no day"),
    ({"peak": 10}, "--peak: 10.00 is less than the present value"),
    ({"cash": 0}, "--cash: is worth nothing"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(FinflowError, match=message):
        decide(trained_run(), **arguments)


# ------------------------------------------------------------------ the environment's own numbers

ENVS: dict[str, dict[str, Any]] = {
    "anchors": {},
    "drift": {"action_base": "drift"},
    "none": {"action_base": "none", "trade_rate": 0.5, "no_trade_band": 0.01},
    "lagged": {"execution_lag": 1, "reward": "differential_sharpe"},
    "costs": {"fee": 0.001, "fees": {"S01": 0.01}, "ticket": 0.5, "capital": 5000.0},
    "some assets left out in training": {"asset_dropout": 0.3},
    "limits": {"max_turnover": 0.05, "max_position": 0.3, "min_position": 0.01, "trade_rate": 1.0},
}


@pytest.mark.parametrize("name", list(ENVS))
def test_orders_are_what_the_environment_trades(name: str) -> None:
    """In the whole history with a day behind it, a step trades the same, to the smallest lot."""
    run = trained_run(**ENVS[name])
    policies = load_policies(run)
    settings = policies.settings
    found = decide(run, lot="0.0000001", peak=20_000)
    longer = table()
    extra = dataclasses.replace(
        longer,
        dates=np.append(longer.dates, np.datetime64(LATER)),
        close=np.vstack([longer.close, longer.close[-1:]]),
        cash_rate=np.zeros(ROWS + 1),
        filled=np.zeros(0, dtype=np.int64),
    )
    own = observe(load_prices(run / "prices.parquet"), settings.market, settings.env_kwargs)
    first = Span(own.splits.train.start, ROWS)
    splits = Splits(first, Span(ROWS, ROWS), Span(ROWS, ROWS))
    market = observe(extra, settings.market, settings.env_kwargs, policies.scaler, splits=splits)
    market = dataclasses.replace(market, moments=own.moments)
    env = lagged(settings.env_kwargs, 0)
    batch = PortfolioBatch(market, Span(ROWS - 1, ROWS + 1), 1, env, evaluation=True)
    batch.reset()
    unit = env.capital or float(found.value)
    weights = np.zeros(6)
    for each in found.positions:
        column = 5 if each.asset == "CASH" else longer.assets.index(each.asset)
        weights[column] = each.weight
    batch.hold(weights[None], float(found.value) / unit, 20_000 / unit)
    batch.step(policies.members[0].act(batch.observations()))
    after = {each.asset: each.weight_after for each in found.positions}
    names = (*longer.assets, "CASH")
    traded = [after[asset] for asset in names]
    np.testing.assert_allclose(traded, batch.weights[0], atol=2e-5)
    assert float(found.costs) == pytest.approx(batch.cost[0] * unit, abs=0.04)
    assert found.turnover == pytest.approx(batch.turnover[0], abs=1e-4)
    assert found.drawdown == pytest.approx(1.0 - float(found.value) / 20_000)


def test_an_untouched_portfolio_is_left_alone() -> None:
    """Where nothing may be traded, not even a single lot is, however far the target."""
    found = decide(trained_run(action_base="none"), trade_rate=0.001, lot="0.001")
    assert found.orders
    found = decide(trained_run(action_base="none", no_trade_band=0.5), lot="0.001")
    assert found.orders == () and found.costs == 0 and found.lines[1] == "Moves nothing."


def test_days_of_small_steps_arrive(tmp_path: Path) -> None:
    """A small account in whole shares comes as near to its target as they allow."""
    run, held, cash = trained_run(trade_rate=0.1), {}, Decimal(3000)
    for _ in range(40):
        found = decide(run, holdings=Holdings(held, cash))
        held = {each.asset: each.after for each in found.positions[:-1]}
        cash = found.cash
    assert found.orders == ()
    for each in found.positions[:-1]:
        short = (Decimal(each.target) * found.value - each.value) / each.price
        assert abs(short) < Decimal("1.02") or short * each.price > cash


class TestResult:
    def test_adds_up_to_the_cent(self) -> None:
        found = decide(trained_run(), trade_rate=1.0)
        assert found.orders
        before = sum(each.value for each in found.positions)
        after = sum(each.value_after for each in found.positions)
        assert before == found.value == after + found.costs
        assert sum(each.amount for each in found.positions) == 0
        assert found.costs == sum(each.cost for each in found.positions)
        assert found.cash == found.positions[-1].after >= 0
        assert all(each.after == each.held + each.order for each in found.positions[:-1])

    def test_sales_come_first(self) -> None:
        found = decide(trained_run(), trade_rate=1.0)
        turns = [each.order > 0 for each in found.orders]
        assert turns == sorted(turns) and True in turns and False in turns

    def test_two_runs_decide_as_one(self) -> None:
        runs = [trained_run(), trained_run(seed=1)]
        both, each = decide(runs), [decide(run) for run in runs]  # type: ignore[arg-type]
        assert both.disagreement > 0.0 and both.runs == tuple(runs)
        targets = [{p.asset: p.target for p in found.positions} for found in (both, *each)]
        for asset, target in targets[0].items():
            mean = (targets[1][asset] + targets[2][asset]) / 2
            assert target == pytest.approx(mean, abs=1e-12)
        assert isinstance(load_policies(runs).policy, Ensemble)

    def test_two_lines_say_who_and_what(self) -> None:
        found = decide(trained_run(), trade_rate=1.0)
        heard = max(found.gates, key=lambda name: found.gates[name])
        bought = max(found.orders, key=lambda each: each.amount)
        sold = min(found.orders, key=lambda each: each.amount)
        assert f"Listens most to {heard}" in found.lines[0]
        for verb, each in (("buys", bought), ("sells", sold)):
            share = f"{abs(float(each.amount / found.value)):.2%}".replace("%", "\u00a0%")
            assert f"{verb} {share} {each.asset}, " in found.lines[1]

    def test_files_hold_it(self, tmp_path: Path) -> None:
        folder = tmp_path / "new" / "orders"
        found = decide(trained_run(), out=folder)
        assert found.folder == folder
        written = json.loads((folder / "allocation.json").read_text())
        assert written == json.loads(json.dumps(found.as_dict()))
        rows = pd.read_csv(folder / "orders.csv")
        assert rows.symbol.tolist() == [each.asset for each in found.positions]
        assert rows.value.sum() == pytest.approx(float(found.value), abs=1e-6)
        assert rows.amount.sum() == pytest.approx(0.0, abs=1e-6)
        decide(trained_run(), out=folder)  # replaces it

    def test_a_link_to_a_folder_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        for _ in range(2):
            decide(trained_run(), out=tmp_path / "link")
            assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
            assert (tmp_path / "link").is_symlink()
            assert (tmp_path / "real" / "orders.csv").is_file()

    def test_the_folder_of_the_caller_is_not_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=r"\.: is where this runs"):
            decide(trained_run(), out=".")

    def test_a_folder_with_other_files_is_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(ConfigError, match=r"holds mine.txt too"):
            decide(trained_run(), out=tmp_path)
        assert (tmp_path / "mine.txt").read_text() == "mine"


class TestPartial:
    def test_what_has_ended_is_left_out_and_named(self) -> None:
        found = decide(partial_run(), partial_frame(), cash=10_000)
        gone = next(each for each in found.positions if each.asset == "S02")
        assert gone.target == 0.0 and gone.order == 0
        assert any(f"Without a price on {last_day()}, and left out: S02." == n for n in found.notes)

    def test_what_has_ended_and_is_held_has_no_value(self) -> None:
        held = Holdings({"S02": Decimal(1)}, Decimal(100))
        with pytest.raises(DataError, match=f"S02 is held and has no price on {last_day()}"):
            decide(partial_run(), partial_frame(), holdings=held)

    def test_holdings_come_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "holdings.csv"
        path.write_text(HOLDINGS)
        assert figures(decide(trained_run(), holdings=path)) == figures(decide(trained_run()))
