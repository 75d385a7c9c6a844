"""What this installation computes with: a result of other code is another result."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from finflow_sb3._version import installed_version

__all__ = ["code_version"]

# The command and the tables show numbers, and change none.
SHOWN = ("cli", "benchmark")
COUNTED = ("benchmark/pretrained.py", "benchmark/work.py")


@lru_cache(maxsize=1)
def code_version() -> str:
    """The installed version, and a hash of the modules that numbers of a cell depend on."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name.split("/")[0] not in SHOWN or name in COUNTED:
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return f"{installed_version()}-{digest.hexdigest()[:16]}"
