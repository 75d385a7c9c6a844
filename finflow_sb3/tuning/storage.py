"""Where a study is kept: SQLite, a journal file, or PostgreSQL; and who may ask for a trial now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import create_engine, event, text

from finflow_sb3.errors import ConfigError, StorageError
from finflow_sb3.files import storing
from finflow_sb3.messages import one_line, shown

__all__ = ["StudyStore", "open_store"]

SQLITE, JOURNAL, POSTGRES = "sqlite:///", "journal:", ("postgresql://", "postgresql+psycopg://")
# A worker that writes holds others up for milliseconds; a busy disk for seconds.
BUSY_SECONDS = 120.0


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

    storage = _reached(url, made)
    # Readers are not held up by a writer, and a kill in a write loses that write alone.
    event.listen(storage.engine, "connect", _write_ahead)
    return StudyStore(storage, url, alone)


def _write_ahead(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")


def _journal(path: Path, url: str) -> StudyStore:
    _make_folder(path)
    backend = _reached(url, lambda: JournalFileBackend(str(path)))
    return StudyStore(JournalStorage(backend), url, _file_lock(path))


def _postgres(url: str) -> StudyStore:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"--storage: {_without_password(url)} needs psycopg; pip install "
            "'finflow-sb3[postgres]'"
        ) from None
    address = f"postgresql+psycopg://{url.partition('://')[2]}"
    engine = create_engine(address)
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

    return StudyStore(_reached(url, made), _without_password(url), alone)


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{host}"


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
        raise StorageError(
            f"{_without_password(url)}: no study can be kept there ({why})"
        ) from None
