"""What is held now: shares by symbol, and cash."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from pathlib import Path

from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.market.readers import SYMBOL_NAMES, plain
from finflow_sb3.messages import remedy, shown

__all__ = ["CASH", "CENT", "Holdings", "Number", "money", "number", "read_holdings"]

Number = Decimal | float | str
"""What stands for an exact number: a float counts as it is printed."""
CASH = "CASH"
"""The row of a holdings file that is money."""
CENT = Decimal("0.01")
SHARES = frozenset({"shares", "quantity", "qty"})
LEAST, MOST = Decimal("1e-9"), Decimal("1e13")
"""Of numbers other than 0: with more, cents would be lost in the arithmetic of costs."""


@dataclass(frozen=True)
class Holdings:
    """A portfolio in shares.

    Attributes
    ----------
    shares : by symbol, positive; what is not named is not held
    cash : money in the currency of the prices, whole cents
    lots : smallest unit that is traded, by symbol, where it differs from the rest's
    source : where they come from, for messages
    """

    shares: Mapping[str, Decimal]
    cash: Decimal
    lots: Mapping[str, Decimal] = field(default_factory=dict)
    source: str = "holdings"

    def __post_init__(self) -> None:
        object.__setattr__(self, "cash", money(self.cash, f"{self.source}: cash"))
        shares = {k: number(v, f"{self.source}: {k}") for k, v in self.shares.items()}
        object.__setattr__(self, "shares", shares)
        lots = {k: number(v, f"{self.source}: lot of {k}") for k, v in self.lots.items()}
        object.__setattr__(self, "lots", lots)
        for symbol, lot in lots.items():
            if lot == 0:
                raise DataError(f"{self.source}: lot of {symbol} is 0; give the smallest order")

    def of(self, assets: tuple[str, ...]) -> tuple[Decimal, ...]:
        """Shares of each asset.

        Raises
        ------
        DataError
            Naming what is held and not among the assets.
        """
        foreign = [symbol for symbol in (*self.shares, *self.lots) if symbol not in assets]
        if foreign:
            what = f"{shown(foreign[0])} is none of the {len(assets)} assets of the run"
            otherwise = "take its row out: it is then no part of the portfolio that is allocated"
            raise DataError(f"{self.source}: {what}; {remedy(foreign[0], assets, otherwise)}")
        return tuple(self.shares.get(asset, Decimal(0)) for asset in assets)

    def lots_of(self, assets: tuple[str, ...], otherwise: Decimal) -> tuple[Decimal, ...]:
        """The lot of each asset."""
        return tuple(self.lots.get(asset, otherwise) for asset in assets)


def number(value: Number, what: str) -> Decimal:
    """A number from 0 on, as it is written: 0, or from `LEAST` to `MOST`.

    Raises
    ------
    DataError
        If it is none.
    """
    try:
        found = Decimal(str(value).strip())
    except InvalidOperation:
        raise DataError(f"{what}: {shown(value)} is no number; write it as 1234.5") from None
    if not found.is_finite() or found < 0:
        raise DataError(
            f"{what}: {found} is no number from 0 on; debts and short sales are unknown"
        )
    if found and not LEAST <= found <= MOST:
        raise DataError(f"{what}: {found} is out of range (0, or {LEAST} to {MOST})")
    return found


def money(value: Number, what: str) -> Decimal:
    """An amount in whole cents; parts of a cent are not there to be spent."""
    return number(value, what).quantize(CENT, rounding=ROUND_DOWN)


def read_holdings(
    path: str | Path | None, cash: Number | None, assets: tuple[str, ...]
) -> Holdings:
    """Holdings from a CSV file with columns symbol and shares, and lot if wanted.

    Parameters
    ----------
    path : the file; None where nothing but cash is held. A row CASH has money for shares
    cash : money beside the file's shares, where it has no such row
    assets : of the run; one that is called CASH is an asset

    Raises
    ------
    DataError
        At the first line that cannot be read; or if shares are not positive numbers.
    ConfigError
        If cash is said nowhere, or twice.
    """
    if path is None:
        if cash is None:
            raise ConfigError(
                "holdings: are not given; name a file, or say with --cash what to invest"
            )
        return Holdings({}, money(cash, "--cash"), source="--cash")
    path = Path(path)
    shares, lots = _read(path)
    own = None if CASH in assets else shares.pop(CASH, None)
    if own is not None and CASH in lots:
        raise DataError(f"{path}: {CASH} has a lot, though it is money; leave that cell empty")
    if own is None and cash is None:
        raise ConfigError(f"{path}: says nothing of cash; add a row {CASH},0 or give --cash")
    if own is not None and cash is not None:
        raise ConfigError(f"{path}: has a row {CASH} beside --cash; leave one of them out")
    found = own if cash is None else cash
    assert found is not None
    return Holdings(shares, money(found, f"{path}: cash"), lots, str(path))


def _read(path: Path) -> tuple[dict[str, Decimal], dict[str, Decimal]]:
    """Shares and lots by symbol."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.reader(handle, skipinitialspace=True))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a CSV file with symbol,shares") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); save it as UTF-8 CSV") from None
    header = [plain(cell) for cell in rows[0]] if rows else []
    symbol = _column(path, header, SYMBOL_NAMES, "symbol")
    amount = _column(path, header, SHARES, "shares")
    lot = header.index("lot") if "lot" in header else None
    shares: dict[str, Decimal] = {}
    lots: dict[str, Decimal] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path}: line {line}"
        if len(row) != len(header):
            raise DataError(f"{where} has {len(row)} cells, the header {len(header)}; correct it")
        name = row[symbol].strip()
        if name in shares:
            raise DataError(f"{where}: {shown(name)} stands twice; add the two up")
        shares[name] = number(row[amount], where)
        if lot is not None and row[lot].strip():
            lots[name] = number(row[lot], where)
    return shares, lots


def _column(path: Path, header: list[str], names: frozenset[str], what: str) -> int:
    found = [i for i, name in enumerate(header) if name in names]
    if len(found) != 1:
        raise DataError(
            f"{path}: line 1 names {len(found)} columns {what}; it must be symbol,shares, and may "
            "have lot"
        )
    return found[0]
