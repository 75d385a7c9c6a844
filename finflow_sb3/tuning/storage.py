"""Where a study is kept: SQLite, a journal file, or PostgreSQL; and who may ask for a trial now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from finflow_sb3.errors import ConfigError, StorageError
from finflow_sb3.files import storing
from finflow_sb3.messages import one_line, shown

__all__ = ["StudyStore", "open_store", "without_password"]

SQLITE, JOURNAL, POSTGRES = "sqlite:///", "journal:", ("postgresql://", "postgresql+psycopg://")
# A worker that writes holds others up for milliseconds; a busy disk for seconds.
BUSY_SECONDS = 120.0
MOST_OF_A_LINE = 1_000_000


@dataclass(frozen=True)
class StudyStore:
    """A storage of Optuna's, and a lock that its workers share wherever they run.

    Attributes
    ----------
    url : as it was given, without a password
    alone : a block in which no other worker asks for a trial or takes one back
    """

    storage: BaseStorage
    url: str
    alone: Callable[[], AbstractContextManager[None]]


def open_store(url: str) -> StudyStore:
    """A storage by its address.

    Parameters
    ----------
    url : `sqlite:///FILE`, `journal:FILE` or `postgresql://USER@HOST/DATABASE`

    Raises
    ------
    ConfigError
        If it is none of these, or the driver of PostgreSQL is not installed.
    StorageError
        If it cannot be reached or written.
    """
    if url.startswith(SQLITE):
        return _sqlite(Path(url.removeprefix(SQLITE)).expanduser(), url)
    if url.startswith(JOURNAL):
        return _journal(Path(url.removeprefix(JOURNAL)).expanduser(), url)
    if url.startswith(POSTGRES):
        return _postgres(url)
    raise ConfigError(
        f"--storage: {shown(url)} is not sqlite:///FILE, journal:FILE or postgresql://…"
    )


def _sqlite(path: Path, url: str) -> StudyStore:
    _make_folder(path)
    arguments = {"connect_args": {"timeout": BUSY_SECONDS}}
    alone = _file_lock(path)

    def made() -> RDBStorage:
        with alone():  # two workers that begin together would both make the tables
            return RDBStorage(f"{SQLITE}{path}", engine_kwargs=arguments)

    return StudyStore(_reached(url, made), url, alone)


def _journal(path: Path, url: str) -> StudyStore:
    _make_folder(path)
    alone = _file_lock(path)
    with alone():  # a worker that begins writes the first line
        if path.exists():
            _require_journal(path, url)
        storage = _reached(url, lambda: JournalStorage(JournalFileBackend(str(path))))
    return StudyStore(storage, url, alone)


def _require_journal(path: Path, url: str) -> None:
    """Refuse a file that something else wrote, before anything is added to it."""
    try:
        with path.open("rb") as file:
            first = file.readline(MOST_OF_A_LINE)
        known = not first or "op_code" in json.loads(first)
    except OSError as error:
        raise StorageError.of(path, error) from error
    except (ValueError, TypeError):
        known = False
    if not known:
        raise StorageError(f"{url}: is no journal of a study; name another file")


def _postgres(url: str) -> StudyStore:
    shown_url = without_password(url)
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"--storage: {shown_url} needs psycopg; pip install 'finflow-sb3[postgres]'"
        ) from None
    address = f"postgresql+psycopg://{url.partition('://')[2]}"
    engine = _engine(address, shown_url)
    number = int.from_bytes(hashlib.sha256(b"finflow tune").digest()[:7], "big")

    @contextmanager
    def alone() -> Iterator[None]:
        # The database gives the lock back when the connection of a killed worker breaks.
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:n)"), {"n": number})
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:n)"), {"n": number})

    def made() -> RDBStorage:
        with alone():  # two workers that begin together would both make the tables
            return RDBStorage(address)

    return StudyStore(_reached(url, made), shown_url, alone)


def _engine(address: str, shown_url: str) -> Engine:
    try:
        return create_engine(address)
    except (SQLAlchemyError, ValueError):
        raise ConfigError(
            f"--storage: {shown_url} is no address of a database; write "
            "postgresql://USER@HOST:PORT/DATABASE"
        ) from None


def without_password(url: str) -> str:
    """An address as others may read it; what can't be told apart from a password is left out."""
    if url.startswith((SQLITE, JOURNAL)):
        return url
    hidden = f"{url.partition('://')[0]}://…"
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        return hidden
    # A password with a bare "@" ends elsewhere than its writer meant.
    if "@" in f"{parsed.host}{parsed.database}":
        return hidden
    query = {k: v for k, v in parsed.query.items() if "password" not in k.lower()}
    shown_url = URL.create(
        parsed.drivername, parsed.username, None, parsed.host, parsed.port, parsed.database, query
    )
    return shown_url.render_as_string()


def _make_folder(path: Path) -> None:
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def _file_lock(path: Path) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def alone() -> Iterator[None]:
        with FileLock(f"{path}.asking"):  # Optuna has a .lock of its own
            yield

    return alone


def _reached(url: str, make: Callable[[], Any]) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return make()
    except Exception as error:  # of whichever driver
        why = one_line(str(error.__cause__ or error))[:200]
        raise StorageError(f"{without_password(url)}: no study can be kept there ({why})") from None
