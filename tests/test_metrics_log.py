"""The metrics log: whole lines for every reader, none of a write that failed, TensorBoard."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finflow_sb3.errors import StorageError
from finflow_sb3.runs.metrics_log import PAGE, MetricsLog

LINES = 4000


def figures(step: int) -> dict[str, Any]:
    """A line about as long as those of training, and not always of the same length."""
    numbers = {f"figure_{i}": (step + i) / 7 for i in range(18 + step % 5)}
    return {"kind": "train", **numbers, "gates": [0.2] * 5}


def write_many(path: Path) -> None:
    with MetricsLog(path) as log:
        for step in range(LINES):
            log.write(step, **figures(step))


def writer_of(path: Path) -> multiprocessing.Process:
    path.touch()
    process = multiprocessing.get_context("spawn").Process(target=write_many, args=(path,))
    process.start()
    return process


def test_a_reader_never_sees_a_part_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = writer_of(path)
    lengths, frames = set(), 0
    while True:
        last = not writer.is_alive()
        content = path.read_bytes().rstrip(b" ")
        assert not content or content.endswith(b"\n"), content[-200:]
        lengths.add(len(content))
        if content:
            frame = pd.read_json(path, lines=True)
            assert frame["step"].tolist() == list(range(len(frame)))
            frames += 1
        if last:
            break
    assert writer.exitcode == 0
    assert frames >= 2 and len(lengths) >= 3, "the reader did not read while the writer wrote"
    assert len(pd.read_json(path, lines=True)) == LINES


def test_a_line_is_one_system_call_within_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[bytes] = []
    write = os.write

    def recorded(handle: int, content: bytes) -> int:
        writes.append(content)
        return write(handle, content)

    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        monkeypatch.setattr(os, "write", recorded)
        for step in range(40):
            log.write(step, **figures(step))
        monkeypatch.undo()
    assert len(writes) == 40
    start = 0
    for content in writes:
        first, last = start + content.index(b"{"), start + len(content) - 1
        assert first // PAGE == last // PAGE
        start += len(content)
    assert any(content.startswith(b" ") for content in writes)


def test_a_long_line_is_written_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(1, a=1.0)
        log.write(2, text="x" * 2 * PAGE)
        assert log.size == path.stat().st_size
    assert b" {" not in path.read_bytes()


def test_padding_is_the_same_after_a_resume(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    with MetricsLog(whole) as log:
        for step in range(60):
            log.write(step, **figures(step))
    with MetricsLog(parts) as log:
        for step in range(31):
            log.write(step, **figures(step))
        size = log.size
        log.write(99, lost=True)
    with MetricsLog(parts, size=size, step=30) as log:
        for step in range(31, 60):
            log.write(step, **figures(step))
    assert parts.read_bytes() == whole.read_bytes()


# ------------------------------------------------------------------- a disk that is full

LIMITED = """
import resource, sys
from pathlib import Path
from finflow_sb3.errors import FinflowError, StorageError
from finflow_sb3.runs.metrics_log import MetricsLog
path = Path(sys.argv[1])
log = MetricsLog(path)
log.write(1, text="a" * 500)
resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        log.write(2, text="b" * 500)
    except StorageError as error:
        print(error)
assert log.size == path.stat().st_size, (log.size, path.stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write(2, text="c" * 500)
"""


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    """The system takes the bytes up to the limit, as a disk does that fills up."""
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.startswith(f"{path}: could not be written: larger than files may become here")
    texts = [json.loads(line)["text"][0] for line in path.read_text().splitlines()]
    assert texts == ["a", "c"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "could not be written: disk full; free some space"),
        (errno.EDQUOT, "could not be written: disk full; free some space"),
        (errno.EIO, "could not be written: Input/output error; see that it can be written"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_errors_of_the_system_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, call: str
) -> None:
    path = tmp_path / "metrics.jsonl"

    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    with MetricsLog(path) as log:
        log.write(1, a=1)
        monkeypatch.setattr(os, call, fail)
        with pytest.raises(StorageError) as caught:
            log.sync() if call == "fsync" else log.write(2, a=2)
        monkeypatch.undo()
        assert str(caught.value) == f"{path}: {words}"
        log.write(3, a=3)
    assert [json.loads(x)["step"] for x in path.read_text().splitlines()] == [1, 3]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_real_full_device(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._handle)
    os.close(full)
    with pytest.raises(StorageError, match="disk full; free some space"):
        log.write(1, a=1)


def test_tensorboard_on_a_full_disk(tmp_path: Path) -> None:
    """Its own thread writes: the error comes with a later call, and is ours."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from finflow_sb3.errors import StorageError\n"
        "from finflow_sb3.runs.board import Board\n"
        "board = Board(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    for step in range(2000):\n"
        "        board.scalars(step, {'a': 1.0})\n"
        "    board.close()\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "board")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert f"{tmp_path / 'board'}: could not be written" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_other_threads_still_tell_of_their_errors(tmp_path: Path) -> None:
    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", seen.append)
        with MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "board"):
            thread = threading.Thread(target=os.stat, args=(tmp_path / "none",))
            thread.start()
            thread.join()
        assert threading.excepthook == seen.append
    assert [one.exc_type for one in seen] == [FileNotFoundError]


# ------------------------------------------------------------------- TensorBoard


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0}
    )
    events.Reload()
    return events


def test_events_after_the_checkpoint_are_not_drawn_twice(tmp_path: Path) -> None:
    path, board = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with MetricsLog(path, board) as log:
        for step in (10, 20):
            log.write(step, kind="train", a=float(step))
        size = log.size
        for step in (30, 40):  # the run is killed after these
            log.write(step, kind="train", a=-1.0)
            log.histogram(step, "portfolios/weights", np.ones(3))
    with MetricsLog(path, board, size, step=20) as log:
        for step in (30, 50):
            log.write(step, kind="train", a=float(step))
    events = read_events(board)
    drawn = [(e.step, e.value) for e in events.Scalars("train/a")]
    assert drawn == [(10, 10.0), (20, 20.0), (30, 30.0), (50, 50.0)]
    assert events.Histograms("portfolios/weights") == []


def test_an_event_is_a_line_and_a_text(tmp_path: Path) -> None:
    path, board = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with MetricsLog(path, board) as log:
        log.event(7, "q_mean", "warn", "mean Q is 120", value=120.0, bad=float("nan"))
    assert json.loads(path.read_text()) == {
        "step": 7,
        "kind": "event",
        "check": "q_mean",
        "action": "warn",
        "message": "mean Q is 120",
        "value": 120.0,
        "bad": None,
    }
    (text,) = read_events(board).Tensors("events/q_mean/text_summary")
    assert text.step == 7
    assert text.tensor_proto.string_val == [b"**warn**: mean Q is 120"]


def test_histograms_leave_out_what_is_not_finite(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "board") as log:
        log.histogram(3, "portfolios/gates", np.array([[0.1, 0.9], [np.nan, np.inf]]))
        log.histogram(4, "portfolios/gates", np.array([np.nan]))
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    (found,) = read_events(tmp_path / "board").Histograms("portfolios/gates")
    assert (found.step, found.histogram_value.num) == (3, 2.0)


def hparams_of(events: EventAccumulator) -> dict[str, Any]:
    """Settings as TensorBoard's plugin reads them."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    kinds = {"string_value", "number_value", "bool_value"}
    return {
        name: next(getattr(value, kind) for kind in kinds if value.HasField(kind))
        for name, value in start.hparams.items()
    }


def test_hyperparameters_are_in_the_runs_own_events(tmp_path: Path) -> None:
    board = tmp_path / "board"
    with MetricsLog(tmp_path / "metrics.jsonl", board) as log:
        log.write(5, kind="train", a=1.0)
        settings = {"cqsac.gamma": 0.99, "cqsac.cal_ql": True, "market.prices": "us20"}
        log.hyperparameters(settings, {"sharpe": 1.25, "unknown": None})
    assert [p for p in board.iterdir() if p.is_dir()] == []
    events = read_events(board)
    assert hparams_of(events) == settings
    assert [(e.step, e.value) for e in events.Scalars("final/sharpe")] == [(5, 1.25)]
    assert "final/unknown" not in events.Tags()["scalars"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda log: log.histogram(1, "x", np.ones(2)),
        lambda log: log.hyperparameters({"a": 1}, {"b": 2.0}),
        lambda log: log.event(1, "check", "warn", "message"),
        lambda log: log.write(1, a=1.0),
    ],
)
def test_everything_works_without_tensorboard(
    tmp_path: Path, draw: Callable[[MetricsLog], None]
) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        draw(log)
        log.sync()
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_mirror_gets_the_numbers(tmp_path: Path) -> None:
    seen: list[Any] = []
    with MetricsLog(
        tmp_path / "metrics.jsonl", mirror=lambda step, numbers: seen.append((step, numbers))
    ) as log:
        log.write(3, kind="train", a=1.5, best=True, name="x", gates=[0.25, 0.75])
    numbers = {"train/a": 1.5, "train/gates/0": 0.25, "train/gates/1": 0.75}
    assert seen == [(3, numbers)]
