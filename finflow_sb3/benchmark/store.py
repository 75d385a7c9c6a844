"""Results of cells on disk: each whole or not there, found again by its content."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from finflow_sb3.benchmark.cells import SETTINGS, Cell, cell_yaml
from finflow_sb3.benchmark.results import POLICY, RESULT, CellResult, unpack
from finflow_sb3.benchmark.tasks import Failed, Files
from finflow_sb3.errors import ArtefactError, StorageError
from finflow_sb3.files import present, storing, sweep, whole_folder, write_whole

__all__ = ["Store"]

FAILED = "failed.json"


class Store:
    """`<out>/cells/<cell>/`, one folder a result.

    Beside the files of the result it has the cell's `config.yml`: the folder of a cell that
    learned is one that `finflow evaluate` takes.
    """

    def __init__(self, out: str | Path):
        self.out = Path(out)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other commands from running cells of this folder, and tidy up after killed ones.

        Raises
        ------
        StorageError
            If another process is at it.
        """
        with storing(self.out):
            (self.out / "cells").mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.out / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StorageError(
                f"{self.out}: another command is running cells there; wait for it, or choose "
                "another folder"
            ) from None
        try:
            sweep(self.out / "cells", "*.*")
            yield
        finally:
            lock.release()

    def folder(self, cell: Cell) -> Path:
        """Where a cell's result lies, or will."""
        return self.out / "cells" / cell.name

    def done(self, cell: Cell) -> bool:
        """Whether its result is there, whole."""
        try:
            return self.get(cell).key == cell.key
        except ArtefactError:
            return False

    def put(self, cell: Cell, files: Files) -> None:
        """Keep the files of a result, if they are one.

        Raises
        ------
        ArtefactError
            If they are no result of this cell: another version may have answered.
        StorageError
            If they cannot be written.
        """
        found = unpack(files, cell.title)
        if found.key != cell.key:
            raise ArtefactError(f"{cell.title}: the answer is of another cell; install one version")
        with whole_folder(self.folder(cell)) as new:
            for name, content in files.items():
                _write(new, name, content)
            (new / SETTINGS).write_text(cell_yaml(cell), "utf-8")

    def get(self, cell: Cell) -> CellResult:
        """The result of a cell.

        Raises
        ------
        ArtefactError
            If there is none, or it is not whole.
        """
        folder = present(self.folder(cell))
        if not (folder / RESULT).is_file():
            raise ArtefactError(f"{folder}: has no result; run the cell")
        try:
            found = [path for path in folder.rglob("*") if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
        except OSError as error:
            raise ArtefactError(f"{folder}: cannot be read ({error.strerror})") from None
        return unpack(files, str(folder))

    def note_failures(self, failed: Sequence[Failed]) -> None:
        """Write which cells failed and why, as `failed.json`; none leaves no such file."""
        path = self.out / FAILED
        if not failed:
            path.unlink(missing_ok=True)
            return
        lines = {each.cell.title: each.why for each in failed}
        write_whole(path, json.dumps(lines, indent=1).encode())


def _write(folder: Path, name: str, content: bytes) -> None:
    """Write one file of a result; it came from another machine, so its name is not trusted."""
    parts = PurePosixPath(name).parts
    if not (len(parts) == 1 or (len(parts) == 2 and parts[0] == POLICY)) or ".." in parts:
        raise ArtefactError(f"a result has a file {name!r}; install one version everywhere")
    path = folder.joinpath(*parts)
    if len(parts) == 1:
        path.write_bytes(content)
    else:
        write_whole(path, content)  # the folder's owner synchronises what lies in it directly
