"""What the process of a cell does: `python -m finflow_sb3.benchmark.child FOLDER`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from finflow_sb3.quiet import silence_gym_notice

silence_gym_notice()

from finflow_sb3.benchmark.cells import read_cell  # noqa: E402
from finflow_sb3.benchmark.processes import ERROR, RESULTS  # noqa: E402
from finflow_sb3.benchmark.results import pack  # noqa: E402
from finflow_sb3.benchmark.work import run_cell  # noqa: E402
from finflow_sb3.errors import FinflowError, StorageError  # noqa: E402
from finflow_sb3.results import Watch  # noqa: E402

__all__ = ["main"]

TELL_EVERY = 0.5


class _Telling(Watch):
    """Progress as lines of JSON, a few a second."""

    def __init__(self) -> None:
        self.told = ("", 0.0)

    def progress(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        before, at = self.told
        if stage != before or done == total or now - at >= TELL_EVERY:
            self.told = (stage, now)
            print(json.dumps([stage, done, total]), flush=True)


def _end_with_parent(folder: Path) -> None:
    """End this process, and remove its folder, once nobody holds the other end of its input."""
    while os.read(0, 1):  # not sys.stdin, whose lock would be held at the end of the process
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main(folder: Path) -> int:
    """Run the cell in `folder`; 0 with its result there, 1 with why there is none."""
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    try:
        files = pack(run_cell(read_cell(folder), folder / "runs", _Telling()))
    except Exception as error:
        # What the user has to mend is the same at the next attempt; a disk may have room by then.
        hopeless = isinstance(error, FinflowError) and not isinstance(error, StorageError)
        why = str(error) if isinstance(error, FinflowError) else f"{type(error).__name__}: {error}"
        (folder / ERROR).write_text(json.dumps({"why": why, "hopeless": hopeless}), "utf-8")
        return 1
    for name, content in files.items():
        path = folder / RESULTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
