"""Cells in processes of this machine, a few at a time."""

from __future__ import annotations

import queue
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from finflow_sb3.benchmark.processes import run_process
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.tasks import CellFailed, Event, Failed, Files, Listener, Task, Waiting
from finflow_sb3.stopping import Stop, stop_on_signal

__all__ = ["run_local"]

LOOK_EVERY = 0.5


@dataclass
class _Ended:
    """The end of an attempt: files of the result, or why there are none."""

    task: Task
    attempt: int
    files: Files | None = None
    failure: CellFailed | None = None
    fault: BaseException | None = None


@dataclass
class _Work:
    """Attempts that wait or run, and what their threads have said."""

    waiting: Waiting
    news: queue.SimpleQueue[Event | _Ended] = field(default_factory=queue.SimpleQueue)
    running: dict[str, Task] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    over: bool = False

    def end(self) -> None:
        """End all processes, and those that a thread is about to start."""
        self.over = True
        for process in list(self.processes.values()):
            process.kill()


def run_local(
    tasks: Sequence[Task], store: Store, workers: int, retries: int, listen: Listener
) -> list[Failed]:
    """Run each cell in a process of its own, and store its result as it comes.

    A process that is killed, or fails, is started again up to `retries` times, unless it failed
    for something that the user has to mend.

    Returns
    -------
    Cells that failed, and why.

    Raises
    ------
    KeyboardInterrupt
        At Ctrl-C, with all processes ended; what is stored stays.
    """
    work = _Work(Waiting(tasks))
    failed: list[Failed] = []
    with stop_on_signal() as stop, ThreadPoolExecutor(workers) as threads:
        try:
            while work.waiting or work.running:
                while work.waiting and len(work.running) < workers:
                    _begin(work, threads, listen)
                _hear(work, store, retries, listen, failed)
                _heed(stop)
        finally:
            work.end()
    return failed


def _heed(stop: Stop) -> None:
    if stop.asked:
        raise KeyboardInterrupt


def _begin(work: _Work, threads: ThreadPoolExecutor, listen: Listener) -> None:
    task, attempt = work.waiting.next(list(work.running.values()))
    work.running[task.cell.key] = task
    listen(Event(task.cell, "started", total=work.waiting.total))
    threads.submit(_attempt, work, task, attempt)


def _attempt(work: _Work, task: Task, attempt: int) -> None:
    """One attempt, in a thread that waits for the process."""
    cell, ended = task.cell, _Ended(task, attempt)

    def progress(stage: str, done: int, total: int) -> None:
        work.news.put(Event(cell, "progress", stage=stage, done=done, total=total))

    def started(process: subprocess.Popen[bytes]) -> None:
        work.processes[cell.key] = process
        if work.over:
            process.kill()

    try:
        ended.files = run_process(task, progress, started)
    except CellFailed as failure:
        ended.failure = failure
    except BaseException as fault:  # the main thread raises it: a full disk, a lack of processes
        ended.fault = fault
    work.processes.pop(cell.key, None)
    work.news.put(ended)


def _hear(work: _Work, store: Store, retries: int, listen: Listener, failed: list[Failed]) -> None:
    """Take in one piece of news, if there is one."""
    try:
        news = work.news.get(timeout=LOOK_EVERY)
    except queue.Empty:
        return
    if isinstance(news, Event):
        listen(news)
        return
    cell = news.task.cell
    del work.running[cell.key]
    if news.fault is not None:
        raise news.fault
    if news.files is not None:
        store.put(cell, news.files)
        listen(Event(cell, "done"))
        return
    why = str(news.failure)
    if news.attempt < retries and not (news.failure and news.failure.hopeless):
        work.waiting.again(news.task, news.attempt + 1)
        listen(Event(cell, "again", why))
        return
    failed.append(Failed(cell, why))
    listen(Event(cell, "failed", why))
