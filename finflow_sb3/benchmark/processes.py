"""One cell in a process of its own: started, listened to, and cleaned up after.

The process gets its cell in a folder, tells of its progress in lines on its standard output, and
leaves the files of its result in the folder. Its standard input is a lifeline: when it closes,
because whoever started the process is gone, the process ends too and takes the folder with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finflow_sb3.benchmark.cells import write_cell
from finflow_sb3.benchmark.tasks import CellFailed, Files, Task, placed
from finflow_sb3.messages import one_line

__all__ = ["ERROR", "RESULTS", "Progress", "run_process"]

RESULTS, ERROR, STDERR = "results", "error.json", "stderr.txt"
Progress = Callable[[str, int, int], None]
Process = subprocess.Popen[bytes]

# Read by numerical libraries as they are loaded; a set of texts has the same order in each process.
ALONE = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "PYTHONHASHSEED": "0",
}
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def run_process(
    task: Task,
    on_progress: Progress | None = None,
    on_start: Callable[[Process], None] | None = None,
) -> Files:
    """Files of a cell's result, from a process that does nothing else.

    Parameters
    ----------
    on_progress : called with (stage, units done, units)
    on_start : called with the process, for the caller to end it

    Raises
    ------
    CellFailed
        If the process ended without a result, with one line of why.
    """
    with tempfile.TemporaryDirectory(prefix="finflow-cell-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_cell(placed(task), folder)
        with _started(folder) as process:
            if on_start is not None:
                on_start(process)
            for line in process.stdout or ():
                if on_progress is not None:
                    _tell(line, on_progress)
            code = process.wait()
        if code != 0:
            raise _failure(folder, code)
        found = sorted(p for p in (folder / RESULTS).rglob("*") if p.is_file())
        return {p.relative_to(folder / RESULTS).as_posix(): p.read_bytes() for p in found}


@contextlib.contextmanager
def _started(folder: Path) -> Any:
    environ = {k: v for k, v in os.environ.items() if k not in OF_TORCHRUN}
    # -P: what lies in the present folder is not imported in the place of a library.
    command = [sys.executable, "-P", "-m", "finflow_sb3.benchmark.child", str(folder)]
    with (folder / STDERR).open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**environ, **ALONE},
            start_new_session=True,  # Ctrl-C is for the one that started it
        )
    try:
        yield process
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        process.wait()


def _tell(line: bytes, on_progress: Progress) -> None:
    try:
        stage, done, total = json.loads(line)
        on_progress(str(stage), int(done), int(total))
    except (ValueError, TypeError):
        return  # something that a library printed


def _failure(folder: Path, code: int) -> CellFailed:
    """Why there is no result, in one line."""
    try:
        told = json.loads((folder / ERROR).read_text("utf-8"))
        return CellFailed(one_line(str(told["why"])), bool(told["hopeless"]))
    except (OSError, ValueError, KeyError):
        pass
    if code < 0:
        return CellFailed(f"its process was ended by {signal.Signals(-code).name}")
    last = (folder / STDERR).read_text("utf-8", "replace").strip().splitlines()[-1:]
    said = f": {one_line(last[0])[:200]}" if last else ""
    return CellFailed(f"its process ended with exit code {code}{said}")
