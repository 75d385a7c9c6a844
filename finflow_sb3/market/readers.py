"""Reads CSV, Parquet and data frames into one raw table; judges layout, not yet numbers."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from finflow_sb3.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DATE_NAMES",
    "FILE_ENDINGS",
    "METADATA",
    "MISSING",
    "SYMBOL_NAMES",
    "RawTable",
    "plain",
    "read_file",
    "read_frame",
    "split_day",
]

FILE_ENDINGS = (".csv", ".csv.gz", ".parquet")
DATE_NAMES = frozenset({"date", "datetime", "timestamp", "time", "day", "tradedate"})
SYMBOL_NAMES = frozenset({"symbol", "ticker", "asset"})
MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "nat", "null", "none"})
METADATA = "finflow"
DAY = re.compile(r"(\d{4})(?:([-/])(\d{1,2})\2(\d{1,2})(?:[T ].*)?|(\d{2})(\d{2}))", re.ASCII)


@dataclass(frozen=True)
class RawTable:
    """Cells as they were read, with what messages need to name them.

    Attributes
    ----------
    name : the source, as the user wrote it
    columns : k column names, unique
    cells : data frame with columns 0..k-1 and an index that counts rows from 0; blank lines
        are left out of it without renumbering
    date_column : position of the dates
    symbol_column : position of the symbols (long form), or None (wide form)
    first_line : number of the first data row, 2 where a header line precedes it
    filled : closes per asset that an earlier import forward-filled
    survivorship : True where the universe is known to have been chosen afterwards
    """

    name: str
    columns: tuple[str, ...]
    cells: pd.DataFrame
    date_column: int
    symbol_column: int | None
    first_line: int
    filled: dict[str, int] = field(default_factory=dict)
    survivorship: bool = False

    def row(self, position: int) -> str:
        """How a message names the row at this position of `cells`: ``line 5`` or ``row 4``."""
        word = "line" if self.first_line == 2 else "row"
        return f"{word} {int(self.cells.index[position]) + self.first_line}"


def plain(name: str) -> str:
    """A column name without case, spaces, underscores and hyphens."""
    return re.sub(r"[\s_\-]", "", name).lower()


def split_day(text: str) -> tuple[int, int, int] | None:
    """Year, month and day of ``2020-01-31``, ``2020/1/31`` or ``20200131``, else None.

    A time of day after it is ignored: prices are daily.
    """
    match = DAY.fullmatch(text.strip())
    if match is None:
        return None
    year, _, month, day, month_2, day_2 = match.groups()
    return int(year), int(month or month_2), int(day or day_2)


def read_file(path: Path, name: str | None = None, what: str = "prices") -> RawTable:
    """Read a CSV, CSV.gz or Parquet file.

    Parameters
    ----------
    name : in messages, instead of the path
    what : the rows are, in messages

    Raises
    ------
    DataError
        If the file is missing, empty, damaged or of another kind, or if its columns are
        unnamed, duplicated or without dates.
    """
    name = str(path) if name is None else name
    if path.is_dir():
        raise DataError(f"{name}: is a folder; name a {', '.join(FILE_ENDINGS)} file in it")
    if not path.exists():
        raise DataError(f"{name}: no such file; check the path, or take the embedded us20")
    if not path.name.lower().endswith(FILE_ENDINGS):
        raise DataError(f"{name}: unknown kind of file; use one of {', '.join(FILE_ENDINGS)}")
    if path.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty; write the {what} again")
    try:
        if path.name.lower().endswith(".parquet"):
            return _read_parquet(path, name, what)
        return _read_csv(path, name, what)
    except UnicodeDecodeError:
        raise DataError(f"{name}: the text is not UTF-8; save it as UTF-8 CSV") from None
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: cannot be read ({reason}); write the file again") from None


def read_frame(frame: pd.DataFrame, name: str = "DataFrame", what: str = "prices") -> RawTable:
    """Take a data frame, wide or long; a named or date index counts as columns.

    Raises
    ------
    DataError
        If it is no data frame, or its columns have two levels or are unnamed, duplicated or
        without dates.
    """
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise DataError(
            f"{type(frame).__name__} is no source of prices; give a data frame, a price table, "
            "a file or the name of a source"
        )
    if frame.columns.nlevels > 1:
        raise DataError(
            f"{name}: its columns have {frame.columns.nlevels} levels; "
            "pass one level, or long form with a symbol column"
        )
    index = frame.index
    dated = any(plain(str(c)) in DATE_NAMES for c in frame.columns)
    named = any(n is not None for n in index.names)
    cells = frame.reset_index(drop=True)
    if named or (not dated and not isinstance(index, pd.RangeIndex)):
        keys = index.to_frame(index=False)
        keys.columns = [n or "date" for n in index.names]
        cells = pd.concat([keys, cells], axis=1)
    columns = tuple(str(c).strip() for c in cells.columns)
    cells.columns = pd.RangeIndex(len(columns))
    first = str(cells.iat[0, 0]) if cells.size else ""
    filled, survivorship = _metadata(frame.attrs.get(METADATA))
    return _raw_table(name, what, columns, cells, first, 1, filled, survivorship)


def _read_parquet(path: Path, name: str, what: str) -> RawTable:
    import pandas as pd

    return read_frame(pd.read_parquet(path, engine="pyarrow"), name, what)


def _metadata(stored: Any) -> tuple[dict[str, int], bool]:
    """Counts of filled closes and the survivorship mark that `write_prices` left in a file."""
    if not isinstance(stored, dict):
        return {}, False
    counts = stored.get("filled")
    filled = {
        str(asset): count
        for asset, count in (counts.items() if isinstance(counts, dict) else ())
        if isinstance(count, int) and count >= 0
    }
    return filled, stored.get("survivorship") is True


def _open_text(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _read_csv(path: Path, name: str, what: str) -> RawTable:
    import pandas as pd

    with _open_text(path) as handle:
        rows = csv.reader(handle)
        header = [cell.strip() for cell in next(rows, [])]
        first = next((row[0] for row in rows if row), "")
    _check_header(name, what, header)
    labels = _label_columns(header)
    # One column more than the header has: a longer row would otherwise shift its cells silently.
    width = len(header) + 1
    try:
        cells = pd.read_csv(
            path,
            header=None,
            names=range(width),
            skiprows=1,
            skip_blank_lines=False,
            encoding="utf-8-sig",
            compression="gzip" if path.name.lower().endswith(".gz") else None,
            dtype=dict.fromkeys((*labels, width - 1), str),
            keep_default_na=False,
            na_values={i: _spellings() for i in range(width) if i not in labels},
            skipinitialspace=True,
            low_memory=False,
        )
    except pd.errors.EmptyDataError:
        raise DataError(f"{name}: has a header but no rows; write the {what} again") from None
    surplus = cells[width - 1].notna().to_numpy()
    if surplus.any():
        line = int(surplus.argmax()) + 2
        raise DataError(
            f"{name}: line {line} has more cells than the header's {len(header)}; correct the line"
        )
    undated = cells.loc[cells[0] == ""]
    blank = undated.index[(undated.isna() | (undated == "")).all(axis=1)]
    cells = cells.drop(index=blank, columns=width - 1)
    return _raw_table(name, what, tuple(header), cells, first, 2, {}, False)


def _spellings() -> list[str]:
    return sorted({form for m in MISSING for form in (m, m.upper(), m.title(), "NaN", "NaT")})


def _check_header(name: str, what: str, header: list[str]) -> None:
    if not any(header):
        raise DataError(f"{name}: line 1 is blank; it must name the columns (date, then assets)")
    if split_day(header[0]) is not None:
        raise DataError(
            f"{name}: line 1 holds a row of the {what}, not names; add a header: date, then assets"
        )
    if len(header) == 1:
        raise DataError(f"{name}: line 1 has one column; separate date and assets by commas")


def _label_columns(columns: list[str]) -> list[int]:
    """Columns that are text whatever they look like: dates and symbols (005930, NA, TRUE)."""
    names = [plain(c) for c in columns]
    return sorted({0} | {i for i, n in enumerate(names) if n in DATE_NAMES | SYMBOL_NAMES})


def _raw_table(
    name: str,
    what: str,
    columns: tuple[str, ...],
    cells: pd.DataFrame,
    first: str,
    first_line: int,
    filled: dict[str, int],
    survivorship: bool,
) -> RawTable:
    if cells.empty:
        raise DataError(f"{name}: has no rows; write the {what} again")
    for i, column in enumerate(columns):
        if column in columns[:i]:
            raise DataError(
                f"{name}: column {column!r} stands twice (columns {columns.index(column) + 1} "
                f"and {i + 1}); rename or remove one"
            )
        if not column and i > 0:
            raise DataError(f"{name}: column {i + 1} has no name; name or remove it")
    dates = _only(name, columns, DATE_NAMES, "date")
    if dates is None and split_day(first) is not None:
        dates = 0
    if dates is None:
        raise DataError(
            f"{name}: no date column (the first is {columns[0]!r}, with {first!r}); "
            "put a column named date first"
        )
    symbols = _only(name, columns, SYMBOL_NAMES, "symbol")
    return RawTable(name, columns, cells, dates, symbols, first_line, filled, survivorship)


def _only(name: str, columns: tuple[str, ...], wanted: frozenset[str], what: str) -> int | None:
    found = [i for i, column in enumerate(columns) if plain(column) in wanted]
    if len(found) > 1:
        raise DataError(
            f"{name}: columns {columns[found[0]]!r} and {columns[found[1]]!r} both name the "
            f"{what}; keep one"
        )
    return found[0] if found else None
