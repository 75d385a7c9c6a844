"""Checksums of files: `manifest.json` says what a folder held when it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finflow_sb3.errors import FinflowError

__all__ = ["MANIFEST", "Digest", "digest_of", "read_manifest", "require_whole", "write_manifest"]

MANIFEST = "manifest.json"
CHECKSUM = "checksum"
BLOCK = 1 << 20


@dataclass(frozen=True)
class Digest:
    """SHA-256 of a file in hexadecimal, and its size in bytes."""

    sha256: str
    size: int

    @classmethod
    def of(cls, pieces: Iterable[Any]) -> Digest:
        """Of what these bytes make when they are joined."""
        hasher, size = hashlib.sha256(), 0
        for piece in pieces:
            hasher.update(piece)
            size += len(piece)
        return cls(hasher.hexdigest(), size)


def digest_of(path: Path) -> Digest:
    """Of a file, which is read block by block."""
    with path.open("rb", buffering=0) as file:
        return Digest.of(iter(lambda: file.read(BLOCK), b""))


def write_manifest(
    folder: Path, kind: str, files: Mapping[str, Digest] | None = None, **facts: Any
) -> None:
    """Write the manifest of a folder that is being filled.

    Parameters
    ----------
    kind : what the folder is, with its version; `read_manifest` asks for it
    files : by name; computed from all files that lie in the folder if not given
    facts : more entries
    """
    if files is None:
        files = {path.name: digest_of(path) for path in sorted(folder.iterdir())}
    entries = {name: asdict(digest) for name, digest in files.items()}
    content = _signed({"format": kind, **facts, "files": entries})
    (folder / MANIFEST).write_bytes(content)


def _signed(content: dict[str, Any]) -> bytes:
    """A manifest as it stands in the file: with a checksum of its own, in one spelling."""
    own = Digest.of([_spelt(content)]).sha256
    return _spelt({**content, CHECKSUM: own})


def _spelt(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def read_manifest(folder: Path, kind: str, error: type[FinflowError]) -> dict[str, Any]:
    """The manifest of a folder, after comparing every file that it names with it.

    Raises
    ------
    error
        Naming the file that is missing, truncated or altered, or that is no such manifest.
    """
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror}); use another copy") from None
    manifest = _parsed(raw, path, error)
    if manifest.get("format") != kind:
        raise error(f"{path}: is the manifest of {manifest.get('format')!r}, not of a {kind}")
    for name, entry in manifest["files"].items():
        require_whole(folder / Path(name).name, entry, error)
    return manifest


def _parsed(raw: bytes, path: Path, error: type[FinflowError]) -> dict[str, Any]:
    try:
        manifest = json.loads(raw)
        content = {name: value for name, value in manifest.items() if name != CHECKSUM}
        whole = isinstance(content["files"], dict) and _signed(content) == raw
    except (ValueError, AttributeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise error(f"{path}: was altered or is no manifest; use another copy")
    parsed: dict[str, Any] = manifest
    return parsed


def require_whole(path: Path, entry: Any, error: type[FinflowError]) -> None:
    """Compare a file with its entry in a manifest.

    Raises
    ------
    error
        If it is missing, truncated or altered.
    """
    try:
        expected = Digest(str(entry["sha256"]), int(entry["size"]))
    except (KeyError, TypeError, ValueError):
        raise error(f"{path}: its manifest was altered; use another copy") from None
    try:
        found = digest_of(path)
    except FileNotFoundError:
        raise error(f"{path}: missing; use another copy") from None
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror}); use another copy") from None
    if found.size != expected.size:
        raise error(
            f"{path}: has {found.size} bytes instead of {expected.size} (truncated?); use another "
            "copy"
        )
    if found != expected:
        raise error(f"{path}: was altered; use another copy")
