"""Cells on a Ray cluster of this machine: a lost worker changes nothing but the time it takes."""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipeline_fixtures import tiny_settings

from finflow_sb3.benchmark.cells import Cell
from finflow_sb3.benchmark.matrix import Executor, run_cells
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.tasks import CellFailed, Event, prices_key
from finflow_sb3.benchmark.work import run_cell
from finflow_sb3.errors import ConfigError, MissingExtraError


def parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = parent(pid)
        yield pid


def worker_of(algo: str) -> int | None:
    """The worker of this test's own cluster that runs a cell of this algorithm."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            if "finflow_sb3.benchmark.child" not in words:
                continue
            cell = json.loads((Path(words[-2]) / "cell.json").read_text())
            if cell["algo"] == algo and os.getpid() in ancestors(int(folder.name)):
                return parent(int(folder.name))
        except (OSError, ValueError):
            continue  # it has ended meanwhile
    return None


class Killer(threading.Thread):
    """Kills, once, the worker that runs a cell of an algorithm."""

    def __init__(self, algo: str):
        super().__init__(daemon=True)
        self.algo, self.over = algo, threading.Event()
        self.killed: int | None = None

    def run(self) -> None:
        while not self.over.wait(0.02):
            worker = worker_of(self.algo)
            if worker is not None:
                os.kill(worker, signal.SIGKILL)
                self.killed = worker
                return


def test_a_lost_worker_changes_no_number(tmp_path: Path) -> None:
    """Two workers, of which one is killed at work; bit for bit what this process computes.

    The prices reach the workers with the task: their file is gone before anything runs.
    """
    settings = tiny_settings(tmp_path)
    key, events = prices_key(settings), list[Event]()
    cells = [Cell(algo, "tiny", settings, key) for algo in ("iql", "equal_weight")]
    broken = replace(cells[1], market="other", prices="another hash")
    here = [run_cell(cell, tmp_path / "here") for cell in cells]
    prices = Path(settings.market.prices)

    def listen(event: Event) -> None:
        events.append(event)
        prices.unlink(missing_ok=True)

    store, killer = Store(tmp_path / "out"), Killer("iql")
    killer.start()
    failed = run_cells([*cells, broken], store, Executor("ray", workers=2), listen)
    killer.over.set()
    killer.join()
    assert killer.killed is not None
    assert [f.cell.market for f in failed] == ["other"] and "has changed since" in failed[0].why
    assert sorted(e.cell.algo for e in events if e.what == "done") == ["equal_weight", "iql"]
    for cell, ours in zip(cells, here, strict=True):
        theirs = store.get(cell)
        assert theirs.measures == ours.measures
        assert theirs.policy.get("weights.safetensors") == ours.policy.get("weights.safetensors")
        for one, other in zip(ours.curves, theirs.curves, strict=True):
            np.testing.assert_array_equal(one.returns, other.returns)
            np.testing.assert_array_equal(one.weights, other.weights)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    cell = Cell("equal_weight", "tiny", settings, prices_key(settings))
    with pytest.raises(MissingExtraError, match=r"finflow-sb3\[ray\]"):
        run_cells([cell], Store(tmp_path / "out"), Executor("ray"), lambda event: None)


def test_an_address_without_a_cluster_is_refused(tmp_path: Path) -> None:
    """At once: Ray itself would ask for minutes."""
    settings = tiny_settings(tmp_path)
    cell = Cell("equal_weight", "tiny", settings, prices_key(settings))
    executor = Executor("ray", address="127.0.0.1:1")
    with pytest.raises(ConfigError, match="no Ray cluster"):
        run_cells([cell], Store(tmp_path / "out"), executor, lambda event: None)


def test_a_failure_survives_the_way_back() -> None:
    back = copy.copy(CellFailed("no room", hopeless=True))  # by the way that pickle takes
    assert (str(back), back.hopeless) == ("no room", True)
