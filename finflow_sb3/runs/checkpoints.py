"""Checkpoints: safetensors for tensors, JSON for the rest, a manifest with checksums.

A checkpoint is written into a temporary folder, synchronised and renamed, so that a folder
with its final name is always whole. `latest.json` and `best.json` name one each.
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

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from finflow_sb3.errors import CheckpointError
from finflow_sb3.files import write_whole

__all__ = ["Checkpoint", "CheckpointStore", "read_checkpoint"]

FORMAT = "finflow-checkpoint-1"
MANIFEST = "manifest.json"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes
    ----------
    tensors : file stem → name → tensor
    state : everything that is not a tensor, as JSON
    """

    path: Path
    tensors: dict[str, dict[str, Tensor]]
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
        contents = {STATE: json.dumps(state).encode()}
        for stem, named in tensors.items():
            contents[f"{stem}.safetensors"] = save({k: v.contiguous() for k, v in named.items()})
        files = {}
        for name, content in contents.items():
            _write_synced(folder / name, content)
            files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
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
    contents = {}
    for name, expected in manifest["files"].items():
        try:
            content = (path / Path(name).name).read_bytes()
        except OSError:
            raise CheckpointError(f"{path / name}: missing; use another checkpoint") from None
        if len(content) != expected["size"]:
            raise CheckpointError(
                f"{path / name}: has {len(content)} bytes instead of {expected['size']} "
                "(truncated?); use another checkpoint"
            )
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise CheckpointError(f"{path / name}: was altered; use another checkpoint")
        contents[name] = content
    try:
        state = json.loads(contents.pop(STATE))
        tensors = {Path(name).stem: dict(load(content)) for name, content in contents.items()}
    except (KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return Checkpoint(path, tensors, state)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: Any = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / MANIFEST}: cannot be read ({error})") from None
    known = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    if not known or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{path / MANIFEST}: not the manifest of a finflow checkpoint")
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
