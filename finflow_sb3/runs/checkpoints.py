"""Checkpoints: safetensors for tensors, JSON for the rest, a manifest with checksums.

A checkpoint is written into a temporary folder, synchronised and renamed, so that a folder
with its final name is always whole. `latest.json` and `best.json` name one each. Tensors are
written from where they lie and read when they are asked for: there is no second copy of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finflow_sb3.errors import CheckpointError
from finflow_sb3.files import write_whole
from finflow_sb3.runs.tensor_files import TensorFile, header_of, pieces_of

__all__ = ["Checkpoint", "CheckpointStore", "read_checkpoint"]

FORMAT = "finflow-checkpoint-1"
MANIFEST = "manifest.json"
STATE = "state.json"
BLOCK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    tensors : file stem → name → tensor, read from the file when it is asked for
    state : everything that is not a tensor, as JSON
    """

    path: Path
    tensors: dict[str, TensorFile]
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run.

    Parameters
    ----------
    folder : where they lie
    keep : how many to keep; the best and the latest are never removed
    """

    def __init__(self, folder: Path, keep: int = 5):
        self.folder, self.keep = folder, keep

    def write(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any]
    ) -> Path:
        """Write the checkpoint of a step, point `latest` to it, remove old ones."""
        final = self.folder / f"step_{step:012d}"
        temporary = self.folder / f".{final.name}.new"
        for leftover in self.folder.glob(".step_*"):  # of a process that was killed
            shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
        try:
            self._fill(temporary, step, tensors, state)
            _replace(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(self.folder)
        self.point("latest", final)
        self._retire()
        return final

    def _fill(
        self,
        folder: Path,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: dict[str, Any],
    ) -> None:
        content = json.dumps(state).encode()
        _write_synced(folder / STATE, content)
        digest = hashlib.sha256(content).hexdigest()
        files: dict[str, Any] = {STATE: {"sha256": digest, "size": len(content)}}
        for stem, named in tensors.items():
            path = folder / f"{stem}.safetensors"
            files[path.name] = _write_tensors(path, named)
        manifest = {"format": FORMAT, "step": step, "files": files}
        _write_synced(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(folder)

    def point(self, name: str, checkpoint: Path, **facts: Any) -> None:
        """Let `latest` or `best` name this checkpoint."""
        content = {"checkpoint": checkpoint.name, **facts}
        write_whole(self.folder / f"{name}.json", json.dumps(content).encode())

    def pointed(self, name: str) -> Path:
        """The checkpoint that `latest` or `best` names.

        Raises
        ------
        CheckpointError
            If there is none.
        """
        try:
            content = json.loads((self.folder / f"{name}.json").read_text())
            return self.folder / Path(str(content["checkpoint"])).name
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{self.folder}: no {name} checkpoint; the run stopped before its first one"
            ) from None

    def rewind(self, checkpoint: Path) -> None:
        """Leave what came after this checkpoint: the run goes on from it another way."""
        for path in self.all():
            if path.name > checkpoint.name:
                shutil.rmtree(path)
        best = self.folder / "best.json"
        if best.is_file() and not self.pointed("best").is_dir():
            best.unlink()
        self.point("latest", checkpoint)

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step_*") if (p / MANIFEST).is_file())

    def _retire(self) -> None:
        protected = {self.pointed("latest")}
        if (self.folder / "best.json").is_file():
            protected.add(self.pointed("best"))
        old = [p for p in self.all() if p not in protected]
        surplus = len(old) + len(protected) - max(self.keep, len(protected))
        for path in old[: max(0, surplus)]:
            shutil.rmtree(path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint after comparing every file with the manifest. Executes nothing.

    Raises
    ------
    CheckpointError
        Naming the file that is missing, truncated or altered.
    """
    manifest = _manifest(path)
    for name, expected in manifest["files"].items():
        _require_whole(path / Path(name).name, path / name, expected)
    try:
        state = json.loads((path / STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / STATE}: cannot be read ({error})") from None
    names = [Path(name).name for name in manifest["files"] if name != STATE]
    tensors = {Path(name).stem: TensorFile(path / name) for name in names}
    return Checkpoint(path, tensors, state)


def _require_whole(path: Path, named: Path, expected: dict[str, Any]) -> None:
    """Compare a file with what the manifest says about it."""
    digest, block, size = hashlib.sha256(), memoryview(bytearray(BLOCK)), 0
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
                size += count
    except OSError:
        raise CheckpointError(f"{named}: missing; use another checkpoint") from None
    if size != expected["size"]:
        raise CheckpointError(
            f"{named}: has {size} bytes instead of {expected['size']} (truncated?); use another "
            "checkpoint"
        )
    if digest.hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{named}: was altered; use another checkpoint")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: Any = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / MANIFEST}: cannot be read ({error})") from None
    known = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    if not known or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path / MANIFEST}: not the manifest of a finflow checkpoint")
    if STATE not in manifest["files"]:
        raise CheckpointError(f"{path / MANIFEST}: names no {STATE}; use another checkpoint")
    checked: dict[str, Any] = manifest
    return checked


def _replace(new: Path, final: Path) -> None:
    """Rename `new` to `final`; what stood there is removed last, and comes back on failure."""
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        final.rename(old)
    try:
        new.rename(final)
    except BaseException:
        if old.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_tensors(path: Path, named: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file straight from the tensors' memory; gives its checksum and size."""
    header = header_of(named)
    digest, size = hashlib.sha256(header), len(header)
    _write_synced(path, header)
    with path.open("ab") as file:
        for piece in pieces_of(named):
            digest.update(piece)
            size += len(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "size": size}


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
