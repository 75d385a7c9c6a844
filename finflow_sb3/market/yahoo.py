"""Daily prices from Yahoo through yfinance, an extra and the only source that goes out."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import DataError, MissingExtraError
from finflow_sb3.market.forms import Panel, chosen_assets

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PREFIX", "download"]

PREFIX = "yahoo:"
COLUMNS = {"close": "Adj Close", "raw_close": "Close", "volume": "Volume"}
logger = logging.getLogger(__name__)


def download(source: str, assets: Sequence[str] | None = None, partial: bool = False) -> Panel:
    """Adjusted closes, raw closes and volumes of ``yahoo:AAPL,MSFT,...``.

    Days before the youngest symbol's first are left out, and a log message says so, unless
    `partial` lets assets start later. Today's bar (UTC) is left out too: while its exchange is
    open it is not a close.

    Raises
    ------
    MissingExtraError
        If yfinance is not installed.
    DataError
        If the symbols are malformed or unknown, or Yahoo cannot be reached.
    """
    listed = [s.strip().upper() for s in source.removeprefix(PREFIX).split(",")]
    if "" in listed or len(set(listed)) != len(listed):
        raise DataError(f"{source}: name each symbol once, as in yahoo:AAPL,MSFT")
    symbols = chosen_assets(source, listed, assets)
    frame = _fetch(source, symbols)
    dates = frame.index.tz_localize(None).to_numpy().astype("datetime64[D]")
    past = dates < np.datetime64(dt.datetime.now(dt.UTC).date())
    dates, frame = dates[past], frame.loc[past]
    values = {name: _columns(source, frame, label, symbols) for name, label in COLUMNS.items()}
    start = 0 if partial else _youngest(source, dates, values["close"], symbols)
    return Panel(source, dates[start:], symbols, {k: v[start:] for k, v in values.items()})


def _fetch(source: str, symbols: tuple[str, ...]) -> pd.DataFrame:
    try:
        import yfinance
    except ImportError:
        raise MissingExtraError(
            f'{source}: needs yfinance; run: pip install "finflow-sb3[yahoo]"'
        ) from None
    try:
        frame: Any = yfinance.download(
            list(symbols),
            period="max",
            interval="1d",
            auto_adjust=False,
            actions=False,
            group_by="column",
            progress=False,
            multi_level_index=True,
        )
    # yfinance lets errors of several HTTP libraries through, none of which it declares.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{source}: the download failed ({reason}); check the connection and try again"
        ) from error
    if frame is None or len(frame) == 0:
        raise DataError(f"{source}: Yahoo sent nothing; check the symbols and the connection")
    return frame


def _columns(
    source: str, frame: pd.DataFrame, label: str, symbols: tuple[str, ...]
) -> NDArray[np.float64]:
    for symbol in symbols:
        if (label, symbol) not in frame.columns or frame[(label, symbol)].isna().all():
            raise DataError(f"{source}: Yahoo has no {label} of {symbol!r}; check the symbol")
    return np.asarray(frame[[(label, s) for s in symbols]].to_numpy(dtype=np.float64))


def _youngest(
    source: str, dates: NDArray[np.datetime64], close: NDArray[np.float64], symbols: tuple[str, ...]
) -> int:
    """Row from which every symbol is listed."""
    first = (~np.isnan(close)).argmax(axis=0)
    start = int(first.max())
    if start > 0:
        logger.warning(
            "%s: %d rows before %s are left out, as %s has no earlier price",
            source,
            start,
            dates[start],
            symbols[int(first.argmax())],
        )
    return start
