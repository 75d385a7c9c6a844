"""Where prices come from, and where checked ones are written."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.market.forms import Panel, chosen_assets, to_panel
from finflow_sb3.market.gaps import fill_gaps, require_prices
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.readers import FILE_ENDINGS, METADATA, read_file, read_frame
from finflow_sb3.market.yahoo import PREFIX, download

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EMBEDDED", "list_sources", "load_prices", "write_prices"]

EMBEDDED = "us20"
OPTIONAL = ("open", "high", "low", "volume", "raw_close")
LARGEST_CASH_RATE = 0.01


def list_sources() -> list[tuple[str, str]]:
    """What `load_prices` accepts: names with one line about each."""
    return [
        (EMBEDDED, "20 large US stocks, adjusted closes, 1990-2022; embedded, no network"),
        ("PATH", "CSV, CSV.gz or Parquet: dates x assets, or long form (date, symbol, close, ...)"),
        ("yahoo:SYMBOL,...", 'daily prices from Yahoo; pip install "finflow-sb3[yahoo]"'),
    ]


def load_prices(
    source: str | Path | pd.DataFrame | PriceTable,
    *,
    assets: Sequence[str] | None = None,
    max_gap: int = 5,
    partial: bool = False,
    cash_rate: float | ArrayLike | None = None,
    until: datetime.date | None = None,
) -> PriceTable:
    """Load a universe's daily prices and check every one of them.

    Row t of the table is what is known at the close of day t: gaps are filled from before,
    never from after. What cannot be used is refused, not dropped.

    Parameters
    ----------
    source : str, Path, DataFrame or PriceTable
        ``us20``, a CSV, CSV.gz or Parquet file, ``yahoo:AAPL,MSFT``, or prices in memory.
        Wide form has a date column first and one column an asset (adjusted closes). Long form
        has columns date, symbol (or ticker, asset) and close or adj_close, and may have open,
        high, low, volume, raw_close and cash_rate; beside an adjusted close, ``close`` is the
        raw one. Case, spaces and underscores in these names do not matter. The optional
        columns are kept as they are, NaN where a cell is empty; but where a close is filled,
        nothing was traded, and an empty volume is 0.
    assets : sequence of str, optional
        Assets to keep, in this order. The others are not checked.
    max_gap : int
        Longest run of rows without a price that is forward-filled and counted in ``filled``.
    partial : bool
        Let assets start or end inside the dates: each is ``listed`` from its first to its last
        price. Otherwise such an asset is refused. A `PriceTable` keeps what it says itself.
    cash_rate : float or array_like of shape [T], optional
        Simple daily rate of cash. By default the source's own, else 0.
    until : date, optional
        Last day to keep: what comes after it fills no gap and lists no asset. (Cells that are no
        numbers or dates are refused all the same.) A `PriceTable` is cut as it is.

    Returns
    -------
    PriceTable

    Raises
    ------
    DataError
        If the source is unknown, or at the first cell, row or asset that cannot be used.
    MissingExtraError
        If ``yahoo:`` is asked for without yfinance.
    """
    if max_gap < 0:
        raise ConfigError(f"max_gap: {max_gap} is out of range (0 to inf)")
    if isinstance(source, PriceTable):
        chosen = chosen_assets(source.source, source.assets, assets)
        return _with_cash(_cut(source, until).select(chosen), cash_rate)
    panel = _panel(source, assets, partial)
    require_prices(panel)
    if until is not None:
        panel = panel.up_to(until)
    if len(panel.dates) < 2:
        when = "" if until is None else f" up to {until}"
        raise DataError(
            f"{panel.name}: has {len(panel.dates)} rows of prices{when}; give at least 2 days"
        )
    close, filled, listed = fill_gaps(panel, max_gap, partial)
    before = np.array([panel.filled.get(a, 0) for a in panel.assets], dtype=np.int64)
    table = PriceTable(
        dates=panel.dates,
        assets=panel.assets,
        close=close,
        filled=filled + before,
        source=panel.name,
        survivorship=panel.survivorship,
        open=panel.values.get("open"),
        high=panel.values.get("high"),
        low=panel.values.get("low"),
        volume=_volume(panel, listed),
        raw_close=panel.values.get("raw_close"),
        listed=listed,
    )
    return _with_cash(table, panel.cash_rate if cash_rate is None else cash_rate)


def _cut(table: PriceTable, until: datetime.date | None) -> PriceTable:
    if until is None:
        return table
    stop = int(np.searchsorted(table.dates, np.datetime64(until), side="right"))
    if stop < 2:
        raise DataError(f"{table.source}: has {stop} rows up to {until}; give at least 2 days")
    return table.rows(0, stop)


def _panel(source: str | Path | pd.DataFrame, assets: Sequence[str] | None, partial: bool) -> Panel:
    if isinstance(source, Path):
        return to_panel(read_file(source.expanduser()), assets)
    if not isinstance(source, str):
        return to_panel(read_frame(source), assets)
    if source == EMBEDDED:
        raw = read_file(_embedded_file(), name=EMBEDDED)
        return to_panel(dataclasses.replace(raw, survivorship=True), assets)
    if source.startswith(PREFIX):
        return download(source, assets, partial)
    path = Path(source).expanduser()
    if path.exists() or path.suffix or len(path.parts) > 1:
        return to_panel(read_file(path, name=source), assets)
    near = difflib.get_close_matches(source.split(":")[0].lower(), [EMBEDDED, PREFIX[:-1]], 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(
        f"{source!r} is no source of prices; {hint}"
        f"give us20, a {', '.join(FILE_ENDINGS)} file, or yahoo:SYMBOL,..."
    )


def _volume(panel: Panel, listed: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    volume = panel.values.get("volume")
    if volume is None:
        return None
    idle = listed & np.isnan(panel.values["close"]) & np.isnan(volume)
    return np.where(idle, 0.0, volume)


def _embedded_file() -> Path:
    """The file in the skfolio wheel, found without importing skfolio, which takes seconds."""
    spec = importlib.util.find_spec("skfolio")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    if not folders:
        raise DataError("us20: skfolio, which carries the prices, is missing; pip install skfolio")
    return Path(folders[0]) / "datasets" / "data" / "sp500_dataset.csv.gz"


def _with_cash(table: PriceTable, cash_rate: float | ArrayLike | None) -> PriceTable:
    rate = table.cash_rate if cash_rate is None else np.array(cash_rate, dtype=np.float64)
    if rate.ndim == 0:
        rate = np.full(len(table), float(rate))
    if rate.shape != (len(table),):
        raise DataError(
            f"{table.source}: cash_rate has shape {rate.shape}; give one number, or one for each "
            f"of the {len(table)} dates"
        )
    bad = ~(np.abs(rate) <= LARGEST_CASH_RATE)
    if bad.any():
        i = int(bad.argmax())
        raise DataError(
            f"{table.source}: cash_rate {rate[i]} on {table.dates[i]} is no daily rate; "
            "0.03 a year is 0.03 / 252 a day"
        )
    return dataclasses.replace(table, cash_rate=rate)


def write_prices(prices: PriceTable, path: str | Path) -> Path:
    """Write prices as long-form Parquet, which `load_prices` reads back equal but for `source`.

    Where an asset is not listed, its close is empty: `partial` reads such a file.

    The file is written whole: a temporary file beside it is synced, then takes its name.

    Parameters
    ----------
    prices : what to write; `filled` and `survivorship` go into the file's metadata
    path : a ``.parquet`` file; its folder is made, an older file replaced

    Returns
    -------
    Path

    Raises
    ------
    DataError
        If the path does not end in ``.parquet`` or cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".parquet":
        raise DataError(f"{path}: prices are written as Parquet; end the name with .parquet")
    frame = _long_frame(prices)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            frame.to_parquet(handle, engine="pyarrow", index=False)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _long_frame(prices: PriceTable) -> pd.DataFrame:
    import pandas as pd

    columns: dict[str, NDArray[np.generic]] = {
        "date": np.repeat(prices.dates.astype("datetime64[s]"), prices.n_assets),
        "symbol": np.tile(np.array(prices.assets, dtype=object), len(prices)),
        "close": prices.listed_close().ravel(),
    }
    for name in OPTIONAL:
        values = getattr(prices, name)
        if values is not None:
            columns[name] = values.ravel()
    if prices.cash_rate.any():
        columns["cash_rate"] = np.repeat(prices.cash_rate, prices.n_assets)
    frame = pd.DataFrame(columns)
    filled = {a: int(c) for a, c in zip(prices.assets, prices.filled, strict=True)}
    frame.attrs[METADATA] = {"filled": filled, "survivorship": prices.survivorship}
    return frame
