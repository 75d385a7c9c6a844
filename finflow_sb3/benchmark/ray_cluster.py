"""Cells as tasks of a Ray cluster (Moritz et al. 2018): no shared disk, results come as bytes.

A task carries its cell and the user's files, and runs the same process as the local executor
does, on whichever machine Ray gives it: the numbers are the same. Every machine needs the same
finflow-sb3; a task on one with other code is refused.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from finflow_sb3.benchmark.processes import run_process
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.tasks import (
    Carried,
    CellFailed,
    Event,
    Failed,
    Files,
    Listener,
    Task,
    Waiting,
)
from finflow_sb3.errors import ConfigError, MissingExtraError
from finflow_sb3.messages import one_line
from finflow_sb3.stopping import stop_on_signal

__all__ = ["run_ray"]

LOOK_EVERY = 0.5
# Seconds that a cluster has to answer.
PATIENCE = 10.0
# What travels is small: price files and policies. Ray's smallest store is 75 MiB.
OBJECT_STORE = 160 << 20
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def run_ray(
    tasks: Sequence[Task],
    store: Store,
    workers: int | None,
    retries: int,
    address: str | None,
    listen: Listener,
) -> list[Failed]:
    """Run each cell as a task of Ray, and store its result as it comes.

    A task whose machine or worker is lost is run again by Ray, one that fails by this function,
    up to `retries` times.

    Parameters
    ----------
    workers : cells at a time; as many as the cluster has processors where it is None
    address : of a running cluster; where it is None, the one that this process is connected to,
        or else one on this machine, which ends with the call

    Returns
    -------
    Cells that failed, and why.

    Raises
    ------
    MissingExtraError
        If Ray is not installed.
    ConfigError
        If there is no cluster at the address.
    KeyboardInterrupt
        At Ctrl-C, with all tasks cancelled; what is stored stays.
    """
    ray = _ray()
    with _connected(ray, address, workers), stop_on_signal() as stop:
        flight = _Flight(ray, tasks, retries)
        most = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        failed: list[Failed] = []
        try:
            while flight.waiting or flight.running:
                while flight.waiting and len(flight.running) < most:
                    started = flight.launch().cell
                    listen(Event(started, "started", total=flight.waiting.total))
                for task, attempt, answer in flight.landed():
                    _take_in(flight, task, attempt, answer, store, listen, failed)
                if stop.asked:
                    raise KeyboardInterrupt
        finally:
            flight.cancel()
    return failed


def _ray() -> Any:
    os.environ.update({k: v for k, v in SILENT.items() if k not in os.environ})
    try:
        import ray
    except ImportError:
        raise MissingExtraError(
            'ray: is not installed; pip install "finflow-sb3[ray]", or use --executor local'
        ) from None
    return ray


@contextmanager
def _connected(ray: Any, address: str | None, workers: int | None) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    if address:
        _require_somebody(address)
    options: dict[str, Any] = {"address": address} if address else _own_cluster(workers)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", configure_logging=True, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = one_line(str(error))[:200]
        raise ConfigError(f"--address: {address or 'local'}: no Ray cluster ({reason})") from None
    try:
        yield
    finally:
        ray.shutdown()


def _require_somebody(address: str) -> None:
    """Refuse an address at which nobody listens: Ray would try it for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return  # "auto" and the like, which Ray looks up by itself
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise ConfigError(
            f"--address: {address}: no Ray cluster ({one_line(str(error))}); give the head's host "
            "and port"
        ) from None


def _own_cluster(workers: int | None) -> dict[str, Any]:
    return {
        # Not one that RAY_ADDRESS names: what is asked for is a flag.
        "address": "local",
        "num_cpus": workers,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE,
    }


class _Flight:
    """Tasks that wait, and those that Ray has."""

    def __init__(self, ray: Any, tasks: Sequence[Task], retries: int):
        self.ray, self.retries = ray, retries
        self.waiting = Waiting(tasks)
        self.running: dict[Any, tuple[Task, int]] = {}
        self.remote = ray.remote(num_cpus=1, max_retries=retries)(_answer)
        self.stored: dict[int, Any] = {}

    def launch(self) -> Task:
        task, attempt = self.waiting.next([task for task, _ in self.running.values()])
        reference = self.remote.remote(Task(task.cell), self._carried(task.carried))
        self.running[reference] = (task, attempt)
        return task

    def _carried(self, carried: Mapping[str, Carried]) -> Any:
        """Files in Ray's store, where those that many cells read are kept once."""
        if id(carried) not in self.stored:
            self.stored[id(carried)] = self.ray.put(dict(carried))
        return self.stored[id(carried)]

    def landed(self) -> Iterator[tuple[Task, int, Files | CellFailed]]:
        """Tasks that have ended, with their answers."""
        ready, _ = self.ray.wait(list(self.running), timeout=LOOK_EVERY)
        for reference in ready:
            task, attempt = self.running.pop(reference)
            try:
                answer: Files | CellFailed = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                # Ray has tried again already; what it says has many lines.
                lines = [line for line in str(error).splitlines() if line.strip()]
                lost = f"{type(error).__name__}: {one_line(lines[0])[:200] if lines else ''}"
                answer = CellFailed(lost, hopeless=True)
            yield task, attempt, answer

    def cancel(self) -> None:
        for reference in self.running:
            self.ray.cancel(reference, force=True)


def _answer(task: Task, carried: Mapping[str, Carried]) -> Files | CellFailed:
    """Runs on a worker of Ray. A failure comes back as a value, which Ray does not dress up."""
    try:
        return run_process(Task(task.cell, carried))
    except CellFailed as failure:
        return failure


def _take_in(
    flight: _Flight,
    task: Task,
    attempt: int,
    answer: Files | CellFailed,
    store: Store,
    listen: Listener,
    failed: list[Failed],
) -> None:
    if not isinstance(answer, CellFailed):
        store.put(task.cell, answer)
        listen(Event(task.cell, "done"))
    elif attempt < flight.retries and not answer.hopeless:
        flight.waiting.again(task, attempt + 1)
        listen(Event(task.cell, "again", answer.why))
    else:
        failed.append(Failed(task.cell, answer.why))
        listen(Event(task.cell, "failed", answer.why))
