"""`status.json`: what it says while a run goes on and how it says that it ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from finflow_sb3.runs import status as module
from finflow_sb3.runs.status import StatusFile, read_status


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module.time, "monotonic", found)
    return found


def test_it_says_who_runs_and_since_when(tmp_path: Path) -> None:
    with StatusFile(tmp_path / "run" / "status.json", "pretraining", 500, step=20):
        found = read_status(tmp_path / "run" / "status.json")
    assert found is not None
    assert (found.pid, found.host) == (os.getpid(), socket.gethostname())
    assert (found.state, found.stage, found.step, found.total) == (
        "running",
        "pretraining",
        20,
        500,
    )
    for text in (found.started, found.updated):
        assert abs(datetime.now(UTC) - datetime.fromisoformat(text)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("ending", "stopping", "state"),
    [
        (None, False, "finished"),
        (None, True, "stopped"),
        (KeyboardInterrupt, False, "stopped"),
        (ValueError, False, "failed"),
        (SystemExit, False, "failed"),
    ],
)
def test_the_end_of_the_block_is_told(
    tmp_path: Path, ending: type[BaseException] | None, stopping: bool, state: str
) -> None:
    path = tmp_path / "status.json"

    def run() -> None:
        with StatusFile(path, "fine-tuning", 100) as status:
            status.update(40)
            status.stopping = stopping
            if ending is not None:
                raise ending

    if ending is None:
        run()
    else:
        with pytest.raises(ending):
            run()
    found = read_status(path)
    assert found is not None and (found.state, found.step) == (state, 40)
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_it_is_written_once_a_second_and_tells_the_recent_speed(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written = tmp_path / "status.json", []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (written.append(b), replace(a, b)))
    with StatusFile(path, "fine-tuning", 10_000, step=1000) as status:
        for step in range(1000, 2001):  # 100 steps a second for ten seconds
            status.update(step)
            clock.now += 0.01
        assert len(written) == 10
        found = read_status(path)
        assert found is not None and found.steps_per_second == pytest.approx(100.0)
        for step in range(2001, 2081):  # then one a second
            clock.now += 1.0
            status.update(step)
        found = read_status(path)
        assert found is not None and found.steps_per_second == pytest.approx(1.0)


def test_what_else_wants_the_step_hears_it(tmp_path: Path) -> None:
    heard: list[int] = []
    with StatusFile(tmp_path / "status.json", "fine-tuning", 10) as status:
        status.before(heard.append)(3)
        status.before(None)(4)
        assert (heard, status.step) == ([3], 4)


def test_training_goes_on_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with StatusFile(tmp_path / "run" / "status.json", "fine-tuning", 10) as status:
        status.update(5)
    assert read_status(tmp_path / "run" / "status.json") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', json.dumps({"other": 1})])
def test_what_is_no_status_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path / "status.json") is None


def write_often(path: Path) -> None:
    module.WRITE_EVERY = 0.0
    with StatusFile(path, "fine-tuning", 2000) as status:
        for step in range(2000):
            status.update(step)


def test_a_reader_always_sees_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    with StatusFile(path, "fine-tuning", 2000):
        pass
    process = multiprocessing.get_context("spawn").Process(target=write_often, args=(path,))
    process.start()
    seen: set[Any] = set()
    while process.is_alive():
        found = read_status(path)
        assert found is not None
        seen.add(found.step)
    assert process.exitcode == 0 and len(seen) > 2
