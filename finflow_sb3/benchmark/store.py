"""Results of cells on disk: each whole or not there, found again by its content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finflow_sb3.benchmark.cells import Cell
from finflow_sb3.benchmark.results import RESULT, CellResult, unpack
from finflow_sb3.errors import ArtefactError
from finflow_sb3.files import present, whole_folder

__all__ = ["Store"]


class Store:
    """`<out>/cells/<cell>/`, one folder a result."""

    def __init__(self, out: Path):
        self.out = out

    @property
    def shared(self) -> Path:
        """Pretrained networks that cells of this machine have in common."""
        return self.out / "pretrained"

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.name

    def done(self, cell: Cell) -> bool:
        """Whether its result is there, whole."""
        try:
            return self.get(cell).key == cell.key
        except (OSError, ArtefactError):
            return False

    def put(self, cell: Cell, files: Mapping[str, bytes]) -> None:
        with whole_folder(self.folder(cell)) as new:
            for name, content in files.items():
                (new / name).write_bytes(content)

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
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        return unpack(files, str(folder))
