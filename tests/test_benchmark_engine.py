"""Cells of a matrix: what they are known by, and processes that run, fail and are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_fixtures import tiny_settings, write_prices

from finflow_sb3.benchmark import cells as cells_module
from finflow_sb3.benchmark import local, matrix
from finflow_sb3.benchmark.cells import Cell, known_algorithm, read_cell, write_cell
from finflow_sb3.benchmark.matrix import Executor, run_cells
from finflow_sb3.benchmark.processes import run_process
from finflow_sb3.benchmark.results import CellResult, pack, unpack
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.tasks import (
    CellFailed,
    Event,
    Failed,
    Files,
    Task,
    Waiting,
    carried_by,
    placed,
    prices_key,
)
from finflow_sb3.benchmark.work import run_cell
from finflow_sb3.config import Settings
from finflow_sb3.errors import ArtefactError, ConfigError, StorageError
from finflow_sb3.market.cache import cache_folder
from finflow_sb3.pipeline import evaluate
from finflow_sb3.training.trained import load_policy


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(tmp_path_factory.mktemp("market"))


def cell_of(settings: Settings, algo: str = "iql", seed: int = 0, **changes: Any) -> Cell:
    cell = Cell(algo, "tiny", settings.replace(run={"seed": seed}), prices_key(settings))
    return replace(cell, **changes)


# ---------------------------------------------------------------- what a cell is known by


def test_the_key_changes_with_what_numbers_depend_on(settings: Settings) -> None:
    cell = cell_of(settings)
    others = [
        replace(cell, algo="cqsac"),
        replace(cell, prices="other prices"),
        replace(cell, fold="fold01"),
        replace(cell, arguments={"gamma": 0.9}),
        replace(cell, settings=settings.replace(run={"seed": 1})),
        replace(cell, settings=settings.replace(env_kwargs={"fee": 0.002})),
        replace(cell, settings=settings.replace(iql={"epochs": 3})),
        replace(cell, settings=settings.replace(market={"test_end": "2002-06-28"})),
        replace(cell, settings=settings.replace(run={"evaluate_interval": 9})),
    ]
    keys = {cell.key, *(other.key for other in others)}
    assert len(keys) == 1 + len(others)
    assert len({cell.name, *(other.name for other in others)}) == 1 + len(others)


def test_the_key_stays_where_numbers_do(settings: Settings, tmp_path: Path) -> None:
    cell = cell_of(settings)
    elsewhere = write_prices(tmp_path / "same.csv")
    changes: list[dict[str, dict[str, Any]]] = [
        {"market": {"prices": str(elsewhere)}},
        {"run": {"log_dir": "elsewhere", "tensorboard": True, "log_interval": 1, "threads": 2}},
        {"td3bc": {"epochs": 9}},
        {"cqsac": {"gamma": 0.5}},
        {"evaluation": {"draws": 200}},
    ]
    for change in changes:
        assert replace(cell, settings=settings.replace(**change)).key == cell.key, change


def test_other_code_gives_other_keys(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cell_of(settings).key
    monkeypatch.setattr(cells_module, "code_version", lambda: "0.0.1-other")
    assert cell_of(settings).key != before


def test_a_cell_travels_as_text(settings: Settings, tmp_path: Path) -> None:
    cell = cell_of(settings, "sac", 3, arguments={"train_freq": [1, "episode"]}, fold="fold02")
    write_cell(cell, tmp_path)
    back = read_cell(tmp_path)
    assert back == cell and back.key == cell.key and back.seed == 3


def test_a_machine_with_other_code_refuses(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cell(cell_of(settings), tmp_path)
    monkeypatch.setattr(cells_module, "code_version", lambda: "0.0.1-other")
    with pytest.raises(ArtefactError, match="install the same everywhere"):
        read_cell(tmp_path)


def test_one_thread_and_the_same_device_everywhere(settings: Settings) -> None:
    run = cell_of(settings.replace(run={"threads": 2})).settings.run
    assert (run.threads, run.device) == (1, "cpu")


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cqsac'"):
        known_algorithm("cqsca")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "somewhere:6379"}, "give --executor ray"),
        ({"workers": 0}, "--workers: 0"),
        ({"retries": -1}, "--retries: -1"),
        ({"name": "slurm"}, "known: local, ray"),
    ],
)
def test_executors_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Executor(**options)


# ---------------------------------------------------------------- files that travel


def test_prices_travel_with_the_task(settings: Settings) -> None:
    """What is laid down elsewhere is the same market under a name of its content."""
    task = Task(cell_of(settings), carried_by(settings))
    there = placed(task)
    path = Path(there.settings.market.prices)
    assert path.is_relative_to(cache_folder()) and path.suffix == ".csv"
    assert path.read_bytes() == Path(settings.market.prices).read_bytes()
    assert prices_key(there.settings) == task.cell.prices
    assert there.key == task.cell.key
    path.write_bytes(b"cut")
    assert Path(placed(task).settings.market.prices).read_bytes() != b"cut"


@pytest.mark.parametrize("algo", ["iql", "equal_weight"])
def test_a_cell_has_the_cash_rate_that_is_set(
    settings: Settings, tmp_path: Path, algo: str
) -> None:
    """It is part of the prices that the cell was made for, and of its Sharpe ratio."""
    richer = settings.replace(env_kwargs={"cash_rate": 0.05})
    plain, paid = (
        run_cell(cell_of(each, algo), tmp_path / name)
        for each, name in ((settings, "plain"), (richer, "paid"))
    )
    excess = paid.curve().returns - 0.05 / 252
    expected = excess.mean() / excess.std(ddof=1) * 252**0.5
    assert paid.measures["lag_0"]["sharpe"] == pytest.approx(expected, abs=1e-9)
    assert paid.measures["lag_0"]["sharpe"] != plain.measures["lag_0"]["sharpe"]


def test_a_cell_of_assets_that_come_and_go(settings: Settings, tmp_path: Path) -> None:
    path = write_prices(tmp_path / "some.csv")
    lines = path.read_text("utf-8").splitlines()
    lines[1:101] = [line.rpartition(",")[0] + "," for line in lines[1:101]]
    path.write_text("\n".join(lines), "utf-8")
    some = settings.replace(market={"prices": str(path), "partial": True})
    found = run_cell(cell_of(some, "equal_weight"), tmp_path / "runs")
    assert np.isfinite(found.measures["lag_0"]["sharpe"])


def test_an_index_travels_too(settings: Settings, tmp_path: Path) -> None:
    index = tmp_path / "index.csv.gz"
    index.write_bytes(b"date,close")
    changed = settings.replace(evaluation={"index": str(index)})
    carried = carried_by(changed)
    assert carried["evaluation.index"].name == "index.csv.gz"
    cell = cell_of(changed, "index")
    there = placed(Task(cell, carried))
    assert there.key == cell.key, "its result would be taken for another cell's"
    index.write_bytes(b"date,price")
    assert cell_of(changed, "index").key != cell.key
    assert Path(str(there.settings.evaluation.index)).read_bytes() == b"date,close"


def test_what_is_embedded_stays() -> None:
    assert carried_by(Settings()) == {}


# ---------------------------------------------------------------- one matrix for real


@pytest.fixture(scope="module")
def ran(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, list[Cell], list[Failed], list[Event]]:
    """Three cells of which one is killed at its first word, and one whose prices changed."""
    cells = [cell_of(settings, algo) for algo in ("equal_weight", "iql", "cqsac")]
    broken = replace(cells[0], market="other", prices="another hash")
    store, events = Store(tmp_path_factory.mktemp("out")), []
    killed: list[int] = []

    def killing(task: Task, on_progress: Any, on_start: Any) -> Files:
        started: list[subprocess.Popen[bytes]] = []

        def start(process: subprocess.Popen[bytes]) -> None:
            started.append(process)
            on_start(process)

        def progress(*news: Any) -> None:
            on_progress(*news)
            if task.cell.algo == "cqsac" and not killed:
                killed.append(started[0].pid)
                os.kill(started[0].pid, signal.SIGKILL)

        return run_process(task, progress, start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "run_process", killing)
        failed = run_cells([broken, *cells], store, Executor(workers=2), events.append)
    assert killed
    return store, cells, failed, events


Ran = tuple[Store, list[Cell], list[Failed], list[Event]]


def test_results_are_those_of_this_process(ran: Ran, tmp_path: Path) -> None:
    """Bit for bit, of a cell that was killed once and of what it shares with another."""
    store, cells, _, _ = ran
    for cell in cells:
        here, there = run_cell(cell, tmp_path), store.get(cell)
        assert here.measures == there.measures
        assert here.policy.keys() == there.policy.keys()
        assert here.policy.get("weights.safetensors") == there.policy.get("weights.safetensors")
        for ours, theirs in zip(here.curves, there.curves, strict=True):
            np.testing.assert_array_equal(ours.returns, theirs.returns)
            np.testing.assert_array_equal(ours.weights, theirs.weights)
            np.testing.assert_array_equal(ours.dates, theirs.dates)
            assert ours.assets == theirs.assets and ours.execution_lag == theirs.execution_lag


def test_a_killed_cell_is_run_again(ran: Ran) -> None:
    _, _, _, events = ran
    of_cqsac = [e for e in events if e.cell.algo == "cqsac" and e.what != "progress"]
    assert [e.what for e in of_cqsac] == ["started", "again", "started", "done"]
    assert of_cqsac[1].why == "its process was ended by SIGKILL"


def test_what_cannot_succeed_is_tried_once_and_the_others_go_on(ran: Ran) -> None:
    store, cells, failed, events = ran
    assert [f.cell.market for f in failed] == ["other"]
    assert "has changed since" in failed[0].why
    told = [e.what for e in events if e.cell.market == "other" and e.what != "progress"]
    assert told == ["started", "failed"]
    assert list(json.loads((store.out / "failed.json").read_text())) == ["equal_weight other"]
    assert all(store.done(cell) for cell in cells)


def test_facts_say_what_each_used(ran: Ran) -> None:
    store, (rule, iql, cqsac), _, _ = ran
    facts = [store.get(cell).facts for cell in (rule, iql, cqsac)]
    assert [f["env_steps"] for f in facts] == [0, 0, 640]
    assert [f["gradient_steps"] for f in facts] == [0, 6, 6]
    assert [f["offline_transitions"] for f in facts] == [0, 320, 320]
    assert facts[2]["seconds"] > facts[1]["seconds"] > 0.0


def test_nothing_is_run_again(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    store, cells, _, _ = ran
    monkeypatch.setattr(matrix, "run_local", lambda *a: pytest.fail("something was run"))
    assert run_cells(cells, store, Executor(), lambda event: None) == []
    assert not (store.out / "failed.json").exists()


def test_a_cell_of_the_store_is_a_run(ran: Ran) -> None:
    """`finflow evaluate` takes it, with the same figures."""
    store, (_, iql, cqsac), _, _ = ran
    for cell in (iql, cqsac):
        folder = store.folder(cell)
        assert load_policy(folder).name == cell.algo
        found = evaluate(folder)
        assert found.measures[cell.algo] == store.get(cell).measures


# ---------------------------------------------------------------- results on disk


@pytest.mark.parametrize("name", ["result.json", "curves.npz"])
def test_a_damaged_result_is_run_again(ran: Ran, tmp_path: Path, name: str) -> None:
    store, (cell, *_), _, _ = ran
    files = pack(store.get(cell))
    other = Store(tmp_path)
    other.put(cell, files)
    assert other.done(cell)
    path = other.folder(cell) / name
    path.write_bytes(path.read_bytes()[:-30])
    assert not other.done(cell)


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out", "best/../../x", "a/b/c"])
def test_names_from_elsewhere_are_not_trusted(ran: Ran, tmp_path: Path, name: str) -> None:
    store, (cell, *_), _, _ = ran
    files = {**pack(store.get(cell)), name: b"x"}
    with pytest.raises(ArtefactError, match="has a file"):
        Store(tmp_path).put(cell, files)
    assert not Store(tmp_path).done(cell)


def test_an_answer_of_another_cell_is_refused(ran: Ran, tmp_path: Path) -> None:
    store, (rule, iql, _), _, _ = ran
    with pytest.raises(ArtefactError, match="of another cell"):
        Store(tmp_path).put(iql, pack(store.get(rule)))


def test_figures_without_a_number_come_back(ran: Ran) -> None:
    store, (cell, *_), _, _ = ran
    result: CellResult = store.get(cell)
    odd = replace(result, measures={"lag_0": {**result.measures["lag_0"], "sortino": np.nan}})
    back = unpack(pack(odd), "here")
    assert np.isnan(back.measures["lag_0"]["sortino"])
    assert back.measures["lag_0"]["sharpe"] == result.measures["lag_0"]["sharpe"]


def test_a_folder_has_one_command_at_a_time(settings: Settings, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.alone(), pytest.raises(StorageError, match="another command is running"):
        run_cells([cell_of(settings)], Store(tmp_path), Executor(), lambda event: None)


# ---------------------------------------------------------------- the local executor


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Task], Files], out: Path) -> Store:
    """The local executor with processes that answer at once, and a store that takes anything."""
    store = Store(out)
    monkeypatch.setattr(local, "run_process", lambda task, *a: answer(task))
    monkeypatch.setattr(store, "put", lambda cell, files: None)
    return store


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (2, 3)])
def test_retries_are_counted(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    retries: int,
    attempts: int,
) -> None:
    tried: list[str] = []

    def answer(task: Task) -> Files:
        tried.append(task.cell.algo)
        if task.cell.algo == "iql":
            raise CellFailed("RuntimeError: no")
        return {}

    store = answering(monkeypatch, answer, tmp_path)
    tasks = [Task(cell_of(settings, algo)) for algo in ("iql", "equal_weight")]
    failed = local.run_local(tasks, store, 1, retries, lambda event: None)
    assert [(f.cell.algo, f.why) for f in failed] == [("iql", "RuntimeError: no")]
    assert tried == ["iql"] * attempts + ["equal_weight"]


def test_a_full_disk_ends_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(task: Task) -> Files:
        raise StorageError("no room")

    store = answering(monkeypatch, answer, tmp_path)
    with pytest.raises(StorageError, match="no room"):
        local.run_local([Task(cell_of(settings))], store, 1, 2, lambda event: None)


def test_no_two_wait_for_the_same_pretraining(settings: Settings) -> None:
    tasks = [Task(cell_of(settings, a, s)) for s in (0, 1) for a in ("iql", "cqsac")]
    waiting, running = Waiting(tasks), []
    for _ in range(3):
        running.append(waiting.next(running)[0])
    # The third has to wait for one of the two that run.
    assert [(t.cell.algo, t.cell.seed) for t in running] == [("iql", 0), ("iql", 1), ("cqsac", 0)]
    assert len(waiting) == 1


def test_an_interruption_ends_every_process(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes that would go on for a minute."""
    sleepers: list[subprocess.Popen[bytes]] = []

    def answer(task: Task, on_progress: Any, on_start: Any) -> Files:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        sleepers.append(process)
        on_start(process)
        if len(sleepers) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        process.wait()
        raise CellFailed("ended")

    monkeypatch.setattr(local, "run_process", answer)
    tasks = [Task(cell_of(settings, "iql", seed)) for seed in range(4)]
    with pytest.raises(KeyboardInterrupt):
        local.run_local(tasks, Store(tmp_path), 2, 0, lambda event: None)
    assert len(sleepers) == 2
    assert [p.returncode for p in sleepers] == [-signal.SIGKILL] * 2


PARENT = """
import sys, time
from pathlib import Path
from finflow_sb3.benchmark.cells import read_cell
from finflow_sb3.benchmark.processes import run_process
from finflow_sb3.benchmark.tasks import Task
print(end="", flush=True)
run_process(Task(read_cell(Path(sys.argv[1]))), on_start=lambda p: print(p.pid, flush=True))
"""


def test_a_cell_does_not_outlive_its_parent(settings: Settings, tmp_path: Path) -> None:
    long = settings.replace(cqsac={"n_timesteps": 10**8})
    write_cell(cell_of(long, "cqsac_scratch"), tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert list(scratch.iterdir())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    ended = threading.Event()
    deadline = time.monotonic() + 120.0
    while _alive(child) and time.monotonic() < deadline:
        ended.wait(0.1)
    assert not _alive(child)
    assert list(scratch.iterdir()) == []


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
