"""Holdings from files, orders in lots, and a ledger that is right to the cent."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from finflow_sb3.allocation.holdings import Holdings, read_holdings
from finflow_sb3.allocation.orders import CostOf, Ledger, Orders, cents, place
from finflow_sb3.errors import FinflowError

Float = NDArray[np.float64]
ASSETS = ("AAA", "BBB", "CCC", "DDD")


def fees(rate: float = 0.001, ticket: float = 0.0) -> CostOf:
    return lambda traded: rate * traded + ticket * (traded > 0.0)


def placed(case: dict[str, Any]) -> Orders:
    """`place` with a case's numbers."""
    names = ("prices", "lots", "cash", "cost_of", "min_order")
    ledger = Ledger(**{name: case[name] for name in names if name in case})
    return place(case["held"], ledger, case["wanted"], case.get("aim"))


def decimals(low: str, high: str, places: int) -> st.SearchStrategy[Decimal]:
    return st.decimals(low, high, places=places, allow_nan=False, allow_infinity=False)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Portfolios with odd lots, prices of all sizes, and targets that spend all there is."""
    n = draw(st.integers(2, 6))
    rows: Any = lambda each: tuple(draw(each) for _ in range(n))  # noqa: E731
    held = rows(st.one_of(st.just(Decimal(0)), decimals("0", "5000", 4)))
    prices = rows(decimals("0.0001", "5000", 4))
    lots = rows(st.sampled_from([Decimal(1), Decimal("0.001"), Decimal(100), Decimal("0.3")]))
    cash = draw(decimals("0", "100000", 2))
    shares = np.array([draw(st.floats(0.0, 1.0)) for _ in range(n + 1)])
    shares[draw(st.integers(0, n))] += 0.1
    value = sum((h * p for h, p in zip(held, prices, strict=True)), cash)
    wanted = float(value) * (shares / shares.sum())[:-1]
    wanted[draw(st.integers(0, n - 1))] *= draw(st.sampled_from([0.0, 1.0]))
    cost = fees(draw(st.sampled_from([0.0, 0.001, 0.05])), draw(st.sampled_from([0.0, 4.95])))
    least = draw(st.sampled_from([Decimal(0), Decimal(50), Decimal(2000)]))
    return {
        "held": held,
        "prices": prices,
        "lots": lots,
        "cash": cash,
        "wanted": wanted,
        "cost_of": cost,
        "min_order": least,
    }


@given(cases())
def test_every_order_is_in_lots_and_paid_for(case: dict[str, Any]) -> None:
    orders = placed(case)
    assert orders.cash >= 0
    assert orders.cash == case["cash"] - sum(orders.amounts) - sum(orders.costs)
    rows = zip(orders.shares, case["held"], case["prices"], case["lots"], strict=True)
    for i, (shares, held, price, lot) in enumerate(rows):
        amount = orders.amounts[i]
        assert amount == cents(shares * price)
        assert held + shares >= 0
        closed = held + shares == 0 and case["wanted"][i] <= 0.0
        assert closed or shares % lot == 0
        assert shares == 0 or abs(amount) >= max(case["min_order"], Decimal("0.01"))
        toward = Decimal(float(case["wanted"][i])) - held * price
        assert shares == 0 or (shares > 0) == (toward > 0)


@given(cases())
def test_the_ledger_adds_up_to_the_cent(case: dict[str, Any]) -> None:
    """Values before are values after, cash and costs; and shares at their price agree to a cent."""
    orders = placed(case)
    before = [cents(h * p) for h, p in zip(case["held"], case["prices"], strict=True)]
    after = [value + amount for value, amount in zip(before, orders.amounts, strict=True)]
    assert sum(before) + case["cash"] == sum(after) + orders.cash + sum(orders.costs)
    for i, value in enumerate(after):
        real = (case["held"][i] + orders.shares[i]) * case["prices"][i]
        assert abs(value - real) <= Decimal("0.01")


def orders_of(**changes: Any) -> Orders:
    case: dict[str, Any] = {
        "held": (Decimal(10), Decimal("2.5")),
        "prices": (Decimal(100), Decimal(40)),
        "lots": (Decimal(1),) * 2,
        "cash": Decimal("100.00"),
        "wanted": np.array([400.0, 700.0]),
        "cost_of": fees(0.01),
    }
    return placed({**case, **changes})


AIM = np.array([400.0, 700.0])
CASES: list[tuple[dict[str, Any], tuple[str, str], str]] = [
    # Sells 6 for 600, wants 15 more for 600; costs of 6 + 6.
    ({}, ("-6", "15"), "88.00"),
    # With 5 in cash 600 − 6 + 5 = 599 pay for 14: 560 and 5.60.
    ({"cash": Decimal("5.00")}, ("-6", "14"), "33.40"),
    # What is not wanted at all goes, odd lots too.
    ({"wanted": np.array([1000.0, 0.0])}, ("0", "-2.5"), "199.00"),
    # Lots of 10: 6 are nearer to 10 than to 0, and 10 are there to be sold.
    ({"lots": (Decimal(10),) * 2}, ("-10", "20"), "282.00"),
    # Fractions.
    (
        {"lots": (Decimal("0.5"),) * 2, "wanted": np.array([365.0, 120.0])},
        ("-6.5", "0.5"),
        "723.30",
    ),
    # Orders of less than 620 are left out, on both sides.
    ({"min_order": Decimal(620)}, ("0", "0"), "100.00"),
    # Without the sale, which is too small, cash pays for 2 shares: 80 and 0.80.
    ({"min_order": Decimal(80), "wanted": np.array([950.0, 700.0])}, ("0", "2"), "19.20"),
    # A ticket of 700 costs more than the sale of 600 raises, and cash does not pay for it.
    ({"cost_of": fees(0.0, 700.0)}, ("0", "0"), "100.00"),
    # A ticket of 45 costs more than a purchase of 40 is worth, though cash would pay for both.
    ({"cost_of": fees(0.0, 45.0), "wanted": np.array([1000.0, 140.0])}, ("0", "0"), "100.00"),
    # A tenth of the way: 0.6 of a share to sell, and 1.5 to buy.
    ({"wanted": np.array([940.0, 160.0]), "aim": AIM}, ("-1", "2"), "118.20"),
    # A twentieth of it is under half a share, but a share or more is missing of both.
    ({"wanted": np.array([970.0, 110.0]), "aim": AIM}, ("-1", "1"), "158.60"),
    # Less than a share is missing in the end of the first; of the second, the step is none.
    ({"wanted": np.array([996.0, 100.0]), "aim": np.array([960.0, 700.0])}, ("0", "0"), "100.00"),
    # In the end nothing is wanted of the second, and after its step less than a lot is left.
    ({"wanted": np.array([1000.0, 30.0]), "aim": np.array([1000.0, 0.0])}, ("0", "-2.5"), "199.00"),
    # Cash for one of two single shares: the one of which more money is missing.
    (
        {"held": (Decimal(0),) * 2, "wanted": np.array([10.0, 10.0]), "aim": AIM},
        ("0", "1"),
        "59.60",
    ),
]


@pytest.mark.parametrize(("changes", "shares", "cash"), CASES)
def test_orders_by_hand(changes: dict[str, Any], shares: tuple[str, str], cash: str) -> None:
    orders = orders_of(**changes)
    assert orders.shares == tuple(map(Decimal, shares))
    assert orders.cash == Decimal(cash)


@given(cases())
def test_what_cash_cannot_pay_for_is_nearly_all_of_it(case: dict[str, Any]) -> None:
    """Where purchases were cut, no further lot of any of them could be paid for."""
    orders = placed(case)
    free = placed({**case, "cash": Decimal(10**9)})
    cost = case["cost_of"]
    rows = zip(orders.shares, free.shares, case["prices"], case["lots"], strict=True)
    for shares, whole, price, lot in rows:
        now = max(shares, Decimal(0))
        if whole - now >= lot:
            less, more = cents(now * price), cents((now + lot) * price)
            charged = [cents(each) for each in cost(np.array([float(less), float(more)]))]
            too_small = more < case["min_order"] or more <= charged[1]
            rise = more + charged[1] - less - charged[0]
            assert too_small or rise > orders.cash


@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
@given(case=cases())
def test_small_steps_arrive(case: dict[str, Any], rate: float) -> None:
    """Day after day a part of the way ends less than a lot from the aim, whatever the account."""
    case = {**case, "cost_of": fees(0.0), "min_order": Decimal(0), "cash": Decimal(10**7)}
    aim = 5 * case["wanted"]
    held = case["held"]
    prices = np.array([float(price) for price in case["prices"]])
    for _ in range(600):
        now = np.array([float(each) for each in held]) * prices
        wanted = now + rate * (aim - now)
        orders = placed({**case, "held": held, "wanted": wanted, "aim": aim})
        held = tuple(have + each for have, each in zip(held, orders.shares, strict=True))
        if not any(orders.shares):
            break
    for have, price, lot, value in zip(held, case["prices"], case["lots"], aim, strict=True):
        # Lots of less than a cent cannot be booked one by one.
        least = max(float(lot * price), 0.02 / rate)
        assert abs(float(have * price) - value) < 1.001 * least


# ------------------------------------------------------------------ holdings


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "holdings.csv"
    path.write_text("\ufeffTicker, Quantity , lot\nBBB,12.5,0.1\n\nAAA, 3 ,\nCASH,1000.019,\n")
    found = read_holdings(path, None, ASSETS)
    assert found.of(ASSETS) == (3, Decimal("12.5"), 0, 0)
    assert found.lots_of(ASSETS, Decimal(1)) == (1, Decimal("0.1"), 1, 1)
    assert found.cash == Decimal("1000.01")


def test_a_lot_of_cash_is_none(tmp_path: Path) -> None:
    path = tmp_path / "holdings.csv"
    path.write_text("symbol,shares,lot\nAAA,1,1\nCASH,1000,1\n")
    with pytest.raises(FinflowError, match="CASH has a lot, though it is money"):
        read_holdings(path, None, ASSETS)


def test_cash_alone_is_enough() -> None:
    found = read_holdings(None, "250000", ASSETS)
    assert found.of(ASSETS) == (0, 0, 0, 0) and found.cash == 250_000


REFUSED: list[tuple[str, str | None, str]] = [
    ("symbol,shares\nAAA,3\n", None, "says nothing of cash; add a row CASH,0"),
    ("symbol,shares\nAAA,3\nCASH,5\n", "10", "has a row CASH beside --cash"),
    ("symbol,shares\nAAB,3\nCASH,5\n", None, "'AAB' is none of the 4 assets.*mean 'AAA'"),
    ("symbol,shares\nSPY,3\nCASH,5\n", None, "'SPY' is none of the 4 assets.*take its row out"),
    ("symbol,shares\nAAA,3\nAAA,4\nCASH,5\n", None, "line 3: 'AAA' stands twice"),
    ("symbol,shares\nAAA,-3\nCASH,5\n", None, "line 2: -3 is no number from 0 on"),
    ("symbol,shares\nAAA,many\nCASH,5\n", None, "line 2: 'many' is no number"),
    ("symbol,shares\nAAA,inf\nCASH,5\n", None, "line 2: Infinity is no number from 0 on"),
    ("symbol,shares\nAAA,3,1\nCASH,5\n", None, "line 2 has 3 cells, the header 2"),
    ("symbol,shares,lot\nAAA,3,0\nCASH,5,\n", None, "lot of AAA is 0"),
    ("symbol,weight\nAAA,3\n", "5", "names 0 columns shares"),
    ("", "5", "names 0 columns symbol"),
    ("symbol,shares\nAAA,3\nCASH,-5\n", None, "line 3: -5 is no number from 0 on"),
]


@pytest.mark.parametrize(("content", "cash", "message"), REFUSED)
def test_files_that_cannot_be_used_are_refused(
    content: str, cash: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "holdings.csv"
    path.write_text(content)
    with pytest.raises(FinflowError, match=message) as caught:
        read_holdings(path, cash, ASSETS).of(ASSETS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"\xff\xfe\x00", "cannot be read")]
)
def test_files_that_are_none(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "holdings.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FinflowError, match=message):
        read_holdings(path, None, ASSETS)


def test_nothing_given_is_refused() -> None:
    with pytest.raises(FinflowError, match="say with --cash what to invest"):
        read_holdings(None, None, ASSETS)


def test_an_asset_may_be_called_cash(tmp_path: Path) -> None:
    path = tmp_path / "holdings.csv"
    path.write_text("symbol,shares\nCASH,7\n")
    found = read_holdings(path, 50, ("CASH", "AAA"))
    assert found.of(("CASH", "AAA")) == (7, 0) and found.cash == 50


def test_numbers_of_python_are_taken_as_printed() -> None:
    assert Holdings({"AAA": 0.1}, 10.1).shares["AAA"] == Decimal("0.1")  # type: ignore[dict-item, arg-type]
