"""How much memory this process has had at most."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["peak_resident", "reset_peak_resident"]

STATUS = Path("/proc/self/status")


def reset_peak_resident() -> None:
    """Let `peak_resident` forget what was before; only Linux can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """Bytes that were resident at most, since the reset or else since the process began."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
