"""Rows that are only ever appended, in files that never change once they are written.

A replay buffer may hold a million transitions, of which a few thousand are new at each
checkpoint. They are written as one more file; a checkpoint names the files that it needs. Slots
are counted from the start of the run, so that a slot has one number wherever the ring buffer
keeps it, and a file that a checkpoint names is never written again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from finflow_sb3.errors import CheckpointError
from finflow_sb3.files import storing, sync
from finflow_sb3.manifests import Digest, require_whole
from finflow_sb3.runs.tensor_files import TensorFile, write_tensors

__all__ = ["Rows", "Segment", "SegmentStore"]


class Rows(Protocol):
    """What appends rows: a replay buffer.

    Attributes
    ----------
    first, stop : numbers of the oldest slot that is kept, and of the next one
    """

    @property
    def first(self) -> int: ...

    @property
    def stop(self) -> int: ...

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """Slots `start` to `stop` as tensors with a row for each, and the numbers of each piece."""


@dataclass(frozen=True)
class Segment:
    """Slots `start` to `stop` in a file.

    Attributes
    ----------
    name : of the file
    sha256, size : what it has to be
    """

    name: str
    start: int
    stop: int
    sha256: str
    size: int

    @classmethod
    def from_dict(cls, entry: Any, where: Path) -> Segment:
        try:
            numbers = int(entry["start"]), int(entry["stop"])
            name, size = Path(str(entry["name"])).name, int(entry["size"])
            return cls(name, *numbers, str(entry["sha256"]), size)
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{where}: names no whole segment; use another copy") from None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class SegmentStore:
    """The segments of one run.

    Parameters
    ----------
    folder : where they lie
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def extend(self, known: tuple[Segment, ...], rows: Rows) -> tuple[Segment, ...]:
        """Write the slots that are not in `known`, and give the segments of all that are kept."""
        kept = [segment for segment in known if segment.stop > rows.first]
        start = max(rows.first, kept[-1].stop if kept else 0)
        if start == rows.stop:
            return tuple(kept)
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            new = [self._write(*piece) for piece in rows.pieces(start, rows.stop)]
            sync(self.folder)
        return (*kept, *new)

    def _write(self, start: int, stop: int, tensors: Mapping[str, Tensor]) -> Segment:
        temporary = self.folder / ".segment.new"
        try:
            digest: Digest = write_tensors(temporary, tensors)
            sync(temporary)
            # The digest in the name: after a rewind the same slots may hold something else.
            name = f"slots_{start:012d}_{stop:012d}_{digest.sha256[:8]}.safetensors"
            os.replace(temporary, self.folder / name)
        except OSError:
            temporary.unlink(missing_ok=True)  # half of it would fill the disk for nothing
            raise
        return Segment(name, start, stop, digest.sha256, digest.size)

    def require_whole(self, segment: Segment) -> None:
        """`CheckpointError`, naming the file, if it is missing, truncated or altered."""
        require_whole(self.folder / segment.name, segment.as_dict(), CheckpointError)

    def open(self, segment: Segment) -> TensorFile:
        return TensorFile(self.folder / segment.name)

    def keep_only(self, needed: set[str]) -> None:
        """Remove the files that no checkpoint names any more."""
        for path in self.folder.glob("slots_*.safetensors"):
            if path.name not in needed:
                path.unlink()
