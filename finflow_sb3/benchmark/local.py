"""Cells in processes of this machine, a few at a time."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from finflow_sb3.benchmark.cells import Cell
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.tasks import Event, Failed, Listener, Task, work

__all__ = ["run_local"]


@dataclass
class _Running:
    cell: Cell
    process: Any
    result: Connection
    attempt: int


def run_local(
    tasks: Sequence[Task], store: Store, workers: int, retries: int, listen: Listener
) -> list[Failed]:
    """Run each cell in a process of its own and store its result as it comes.

    A process that is killed, or fails, is started again up to `retries` times. An interruption
    ends all processes; what is stored stays.

    Returns
    -------
    Cells that failed, and why.
    """
    waiting = [(task, 0) for task in tasks]
    running: dict[Connection, tuple[Task, _Running]] = {}
    failed: list[Failed] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                task, attempt = waiting.pop(0)
                started = _start(task, attempt)
                running[started.result] = (task, started)
                listen(Event(task.cell, "started"))
            for ready in wait(list(running)):
                task, one = running.pop(ready)  # type: ignore[arg-type]
                files, why = _outcome(one)
                if files is not None:
                    store.put(task.cell, files)
                    listen(Event(task.cell, "done"))
                elif one.attempt < retries:
                    waiting.insert(0, (task, one.attempt + 1))
                    listen(Event(task.cell, "again", why))
                else:
                    failed.append(Failed(task.cell, why))
                    listen(Event(task.cell, "failed", why))
    finally:
        for _, one in running.values():
            one.process.terminate()
        for _, one in running.values():
            one.process.join(timeout=5)
            if one.process.is_alive():
                one.process.kill()
    return failed


def _start(task: Task, attempt: int) -> _Running:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(task, theirs), daemon=False)
    process.start()
    theirs.close()
    return _Running(task.cell, process, ours, attempt)


def _child(task: Task, result: Connection) -> None:
    """Send the files of the result, or a line that says why there are none."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes itself
    try:
        result.send(work(task))
    except Exception as error:
        result.send(" ".join(f"{type(error).__name__}: {error}".split()))
    finally:
        result.close()


def _outcome(one: _Running) -> tuple[dict[str, bytes] | None, str]:
    """Files, or why there are none. The pipe ends without a word where the process was killed."""
    try:
        received = one.result.recv()
    except EOFError:
        received = None
    one.result.close()
    one.process.join()
    if isinstance(received, dict):
        return received, ""
    if received is None:
        time.sleep(0.1)
        return None, f"its process ended with exit code {one.process.exitcode}"
    return None, str(received)
