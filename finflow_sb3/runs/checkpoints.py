"""Checkpoints: safetensors for tensors, JSON for the rest, a manifest with checksums.

A checkpoint is written into a temporary folder, synchronised and renamed, so that a folder
with its final name is always whole. `latest.json` and `best.json` name one each. Tensors are
written from where they lie and read when they are asked for: there is no second copy of them.
Rows that are only appended (the replay buffer) lie beside the checkpoints, in `segments`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finflow_sb3.errors import CheckpointError
from finflow_sb3.files import remove_folder, sweep, whole_folder, write_whole
from finflow_sb3.manifests import MANIFEST, Digest, read_manifest, write_manifest
from finflow_sb3.runs.segments import Rows, Segment, SegmentStore
from finflow_sb3.runs.tensor_files import TensorFile, write_tensors

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "fitting",
    "named_checkpoint",
    "read_checkpoint",
]

FORMAT = "finflow-checkpoint-2"
STATE = "state.json"
SEGMENTS = "replay"
PREFIX = "step_"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    step : that it was written at
    tensors : file stem → name → tensor, read from the file when it is asked for
    state : everything that is not a tensor, as JSON
    segments : files with the rows that were appended so far
    lost : slots in front of the first segment that are gone: they were in a damaged one, or
        lay before it
    """

    path: Path
    step: int
    tensors: dict[str, TensorFile]
    state: dict[str, Any]
    segments: tuple[Segment, ...] = ()
    lost: int = 0

    def rows(self) -> Iterator[tuple[int, int, TensorFile]]:
        """Slots `start` to `stop` with their tensors, segment by segment.

        Where slots were lost, those that are left are counted from 0.
        """
        store = SegmentStore(self.path.parent / SEGMENTS)
        offset = self.segments[0].start if self.lost and self.segments else 0
        for segment in self.segments:
            yield segment.start - offset, segment.stop - offset, store.open(segment)


class CheckpointStore:
    """The checkpoints of one run.

    Parameters
    ----------
    folder : where they lie
    keep : how many to keep; the latest and those that are pointed to are never removed
    """

    def __init__(self, folder: Path, keep: int = 5):
        self.folder, self.keep = folder, keep
        self.segments = SegmentStore(folder / SEGMENTS)
        self._written: tuple[Segment, ...] = ()

    # ---------------------------------------------------------------- writing

    def write(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: dict[str, Any],
        rows: Rows | None = None,
        pointers: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Path:
        """Write the checkpoint of a step, point `latest` to it, remove old ones.

        Parameters
        ----------
        rows : what has appended slots; those that no segment holds yet are written
        pointers : others that are to name it, with facts that they state

        Raises
        ------
        StorageError
            If the disk is full; earlier checkpoints are unharmed.
        """
        sweep(self.folder, f"{PREFIX}*")
        for leftover in self.folder.glob(".*.json.*"):
            leftover.unlink()
        final = self.folder / f"{PREFIX}{step:012d}"
        segments = () if rows is None else self.segments.extend(self._written, rows)
        with whole_folder(final) as folder:
            files = {STATE: _write_state(folder / STATE, state)}
            for stem, named in tensors.items():
                path = folder / f"{stem}.safetensors"
                files[path.name] = write_tensors(path, named)
            parts = [segment.as_dict() for segment in segments]
            write_manifest(folder, FORMAT, files, step=step, segments=parts)
        self._written = segments
        for name, facts in {"latest": {}, **(pointers or {})}.items():
            self.point(name, final, **facts)
        self._retire(final)
        return final

    def point(self, name: str, checkpoint: Path, **facts: Any) -> None:
        """Let `latest`, `best` or another pointer name this checkpoint."""
        content = {"checkpoint": checkpoint.name, **facts}
        write_whole(self.folder / f"{name}.json", json.dumps(content).encode())

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Leave what came after this checkpoint: the run goes on from it."""
        for path in self.all():
            if path.name > checkpoint.path.name:
                remove_folder(path)
        for pointer in self._pointers():
            if not self.pointed(pointer.stem).is_dir():
                pointer.unlink()
        self._written = () if checkpoint.lost else checkpoint.segments
        self.point("latest", checkpoint.path)

    def _retire(self, latest: Path) -> None:
        try:
            protected = {latest, *(self.pointed(path.stem) for path in self._pointers())}
        except CheckpointError:
            return  # which one is the best is not known: none is removed
        old = [path for path in self.all() if path not in protected]
        for path in old[: max(0, len(old) + len(protected) - max(self.keep, len(protected)))]:
            remove_folder(path)
        self._retire_segments()

    def _pointers(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"))

    def _retire_segments(self) -> None:
        needed: set[str] = set()
        for path in self.all():
            try:
                content = json.loads((path / MANIFEST).read_bytes())
                needed |= {entry["name"] for entry in content["segments"]}
            except (OSError, ValueError, KeyError, TypeError):
                return  # what a damaged checkpoint needs is not known
        self.segments.keep_only(needed)

    # ---------------------------------------------------------------- reading

    def pointed(self, name: str) -> Path:
        """The checkpoint that a pointer names.

        Raises
        ------
        CheckpointError
            If there is none.
        """
        path = self.folder / f"{name}.json"
        try:
            content = json.loads(path.read_text())
            return self.folder / Path(str(content["checkpoint"])).name
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.folder}: no {name} checkpoint; the run stopped before its first one"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{path}: cannot be read; name a checkpoint itself") from None

    def all(self) -> list[Path]:
        """Checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob(f"{PREFIX}*") if p.is_dir())

    def newest_whole(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is not damaged; None if there never was one.

        Where a damaged segment leaves none whole, the newest one goes on without the slots up to
        that segment: transitions that were to be learned from once more are all that is lost.

        Parameters
        ----------
        warn : called with a line for each one that is damaged

        Raises
        ------
        CheckpointError
            If none can be gone on from.
        """
        damaged: list[CheckpointError] = []
        for path in reversed(self.all()):
            try:
                return read_checkpoint(path)
            except CheckpointError as error:
                damaged.append(error)
                warn(f"{error}; trying the one before")
        for path in reversed(self.all()):
            try:
                rest = read_checkpoint(path, salvage=True)
            except CheckpointError:
                continue
            warn(f"{path}: goes on without {rest.lost:,} slots of the replay buffer")
            return rest
        if damaged:
            raise CheckpointError(f"{damaged[0]}; no other checkpoint of this run is whole")
        return None


@contextmanager
def fitting(checkpoint: Checkpoint) -> Iterator[None]:
    """What is taken from a checkpoint within the block has to be what is looked for.

    Raises
    ------
    CheckpointError
        If something is missing, or of another kind or shape.
    """
    try:
        yield
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{checkpoint.path}: does not fit these settings ({reason}); resume with the "
            "config.yml of the run"
        ) from None


def read_checkpoint(path: Path, salvage: bool = False) -> Checkpoint:
    """Read a checkpoint after comparing every file with the manifest. Executes nothing.

    Parameters
    ----------
    salvage : go without the slots up to the last damaged segment

    Raises
    ------
    CheckpointError
        Naming the file that is missing, truncated or altered.
    """
    manifest = read_manifest(path, FORMAT, CheckpointError)
    where = path / MANIFEST
    try:
        step, entries = int(manifest["step"]), list(manifest["segments"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{where}: names no step and segments; use another copy") from None
    if STATE not in manifest["files"]:
        raise CheckpointError(f"{where}: names no {STATE}; use another copy")
    segments = tuple(Segment.from_dict(entry, where) for entry in entries)
    whole = _whole_segments(path.parent / SEGMENTS, segments, salvage)
    lost = whole[0].start - segments[0].start if whole else _slots(segments)
    names = [Path(name).name for name in manifest["files"] if name != STATE]
    tensors = {Path(name).stem: TensorFile(path / name) for name in names}
    return Checkpoint(path, step, tensors, _read_state(path / STATE), whole, lost)


def _whole_segments(
    folder: Path, segments: tuple[Segment, ...], salvage: bool
) -> tuple[Segment, ...]:
    """All of them; with `salvage` those behind the last damaged one."""
    store = SegmentStore(folder)
    whole: list[Segment] = []
    for segment in segments:
        try:
            store.require_whole(segment)
            whole.append(segment)
        except CheckpointError:
            if not salvage:
                raise
            whole = []
    return tuple(whole)


def _slots(segments: tuple[Segment, ...]) -> int:
    return segments[-1].stop - segments[0].start if segments else 0


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds no mapping; use another copy")
    return state


def _write_state(path: Path, state: dict[str, Any]) -> Digest:
    content = json.dumps(state).encode()
    path.write_bytes(content)
    return Digest.of([content])


def named_checkpoint(path: Path) -> Path | None:
    """The checkpoint that a path names, None where it names a run."""
    path = path.absolute()
    return path if path.name.startswith(PREFIX) and path.parent.name == "checkpoints" else None
