"""Watching a run: what a snapshot says of files, of processes and of a run that trains."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from learning_fixtures import tiny_settings
from rich.console import Console
from run_files import COURSE, epoch, event, train, validation, write_run, write_status
from typer.testing import CliRunner

from finflow_sb3 import take_snapshot
from finflow_sb3.cli import watch
from finflow_sb3.cli.app import app
from finflow_sb3.cli.watch_table import watch_table
from finflow_sb3.errors import ArtefactError
from finflow_sb3.pipeline import Watch, finetune, pretrain
from finflow_sb3.runs.snapshot import Figure, Snapshot


def shown(snapshot: Snapshot, width: int = 80) -> str:
    """The table as text."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(watch_table(snapshot, width))
    return capture.get()


# ------------------------------------------------------------------- files


def test_a_snapshot_of_a_run_that_goes_on(tmp_path: Path) -> None:
    lines = [*COURSE, event(2000, "first"), train(4000, q_mean=150.0, **{"return": None})]
    found = take_snapshot(_running(tmp_path, lines))
    assert (found.state, found.over, found.stage) == ("running", False, "fine-tuning")
    assert (found.step, found.total, found.logged) == (3000, 10_000, 4000)
    assert (found.steps_per_second, found.seconds_left) == (100.0, 70.0)
    assert found.figures["q_mean"] == Figure(150.0, "warning", "-10 to 10")
    assert found.figures["return"].value is None
    assert found.validation is not None and found.validation["step"] == 3000
    assert found.best is not None and found.best["step"] == 2000
    assert found.gates == (0.1, 0.2, 0.3, 0.25, 0.15)
    assert [e["message"] for e in found.events] == ["first"]
    assert found.figures["critic_loss"] == Figure(0.3, "ok", "under 5")


def _running(folder: Path, lines: list[dict[str, Any]], **status: Any) -> Path:
    write_status(folder, **status)
    return write_run(folder, lines, tail='{"step": 9')


def test_a_figure_that_a_line_leaves_out_is_the_one_before(tmp_path: Path) -> None:
    found = take_snapshot(_running(tmp_path, [train(1), {"step": 2, "kind": "train", "q_mean": 7}]))
    assert found.figures["critic_loss"].value == 0.3
    assert found.figures["q_mean"].value == 7


@pytest.mark.parametrize(
    ("status", "state", "over"),
    [
        ({"state": "finished"}, "finished", True),
        ({"state": "stopped"}, "stopped", True),
        ({"state": "failed"}, "failed", True),
        ({}, "running", False),  # on another machine: nobody here can tell
        ({"host": socket.gethostname(), "pid": os.getpid()}, "running", False),
    ],
)
def test_states(tmp_path: Path, status: dict[str, Any], state: str, over: bool) -> None:
    found = take_snapshot(_running(tmp_path, COURSE, **status))
    assert (found.state, found.over) == (state, over)
    assert (found.seconds_left is None) == over


@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_was_killed_is_gone(tmp_path: Path, reaped: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = _running(tmp_path, COURSE, host=socket.gethostname(), pid=process.pid)
    try:
        assert take_snapshot(run).state == "running"
        process.kill()
        if reaped:
            process.wait()
        else:  # it stays in the table of processes until its parent asks
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        found = take_snapshot(run)
    finally:
        process.kill()
        process.communicate()
    assert (found.state, found.over) == ("gone", True)
    assert "not running any more: process gone" in shown(found)


@pytest.mark.parametrize(("lines", "over"), [([], False), (COURSE, True)])
def test_a_run_without_a_status(tmp_path: Path, lines: list[dict[str, Any]], over: bool) -> None:
    (tmp_path / "config.yml").write_text("default: {}\n")
    found = take_snapshot(write_run(tmp_path, lines))
    assert (found.state, found.over) == ("unknown", over)
    assert ("Nothing is logged yet." in shown(found)) != over


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no config\.yml in it"):
        take_snapshot(tmp_path)
    with pytest.raises(ArtefactError, match="no such run"):
        take_snapshot(tmp_path / "none")


# ------------------------------------------------------------------- a run that trains


class Looking(Watch):
    """Takes a snapshot at every step of a stage."""

    def __init__(self) -> None:
        self.run = Path()
        self.seen: list[Snapshot] = []

    def started(self, run: Path) -> None:
        self.run = run

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage in ("pretraining", "fine-tuning"):
            self.seen.append(take_snapshot(self.run))


def test_real_runs_are_seen_from_their_start_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finflow_sb3.runs.status.WRITE_EVERY", 0.0)
    settings = tiny_settings(tmp_path)
    looking = Looking()
    pretrained = pretrain(settings, watch=looking)
    assert {(s.state, s.stage, s.total) for s in looking.seen} == {("running", "pretraining", 10)}
    assert [s.step for s in looking.seen] == list(range(1, 11))
    assert take_snapshot(pretrained.run).state == "finished"

    looking = Looking()
    stopped = finetune(settings, pretrained.run, stop_at=100, watch=looking)
    assert {(s.state, s.pid) for s in looking.seen} == {("running", os.getpid())}
    found = take_snapshot(stopped.run)
    assert (found.state, found.step, found.total) == ("stopped", stopped.steps, 240)
    assert found.figures["policy_width"].level is not None
    (latest,) = [c for c in found.checkpoints if c.latest]
    assert latest.step == stopped.steps and found.checkpoints[0] == latest
    assert latest.age >= 0.0


def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    class Failing(Looking):
        def progress(self, stage: str, done: int, total: int) -> None:
            super().progress(stage, done, total)
            if done >= 60:
                raise RuntimeError("broken")

    looking = Failing()
    with pytest.raises(RuntimeError, match="broken"):
        finetune(tiny_settings(tmp_path), watch=looking)
    assert take_snapshot(looking.run).state == "failed"


# ------------------------------------------------------------------- the table


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_and_is_whole(tmp_path: Path, width: int) -> None:
    bad = train(4000, q_mean=-150.25, critic_loss=8.0, actor_loss=None, entropy=None)
    text = shown(take_snapshot(_running(tmp_path, [*COURSE, bad, event(4000)])), width)
    rows = text.splitlines()
    assert max(map(len, rows)) <= width
    assert "…" not in text.replace(rows[0], "")
    said = " ".join(text.replace("│", " ").split())
    for part in (
        "Fine-tuning: running",
        "process 1 on elsewhere",
        "3,000 / 10,000 100 steps/s 0:01:10 left",
        "mean Q !! -150 -10 to 10",
        "critic loss ! 8 under 5",
        "actor loss !! – -10 to 10",
        "Sharpe 0.700 0.900",
        "best 2,000",
        "defensive 25%",
        "4,000 q_mean: warn: mean Q is 150",
    ):
        assert part in said, (part, said)


def test_pretraining_has_its_own_figures(tmp_path: Path) -> None:
    text = shown(take_snapshot(_running(tmp_path, [epoch(1, 0.2)], stage="pretraining")))
    for part in ("Pretraining: running", "value loss", "critic loss", "policy loss", "growth"):
        assert part in text


# ------------------------------------------------------------------- the command


def invoke(*args: Any) -> Any:
    runner = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"})
    return runner.invoke(app, ["watch", *map(str, args)])


@pytest.mark.parametrize("flags", [[], ["--once"]])
def test_it_prints_once_where_nobody_watches(tmp_path: Path, flags: list[str]) -> None:
    result = invoke(_running(tmp_path, COURSE), *flags)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("Fine-tuning: running") == 1


def test_the_snapshot_as_json(tmp_path: Path) -> None:
    found = json.loads(invoke(_running(tmp_path, COURSE), "--json").stdout)
    assert found["state"] == "running"
    expected = {"value": 2.0, "level": "ok", "normal": "-10 to 10"}
    assert found["figures"]["q_mean"] == expected


@pytest.mark.parametrize(
    ("args", "words"),
    [(["none"], "no such run"), ([".", "--seed", "1"], "leave out --seed")],
)
def test_the_command_refuses(args: list[str], words: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 1 and words in result.stderr


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal would get."""
    file = io.StringIO()
    console = Console(file=file, width=80, height=60, force_terminal=True, color_system=None)
    monkeypatch.setattr(watch, "out", console)
    return file


@pytest.mark.parametrize("ending", ["finished", "ctrl-c"])
def test_it_looks_again_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: io.StringIO, ending: str
) -> None:
    run, naps = _running(tmp_path, COURSE), []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        write_status(run, step=3000 + 1000 * len(naps))
        if len(naps) == 3:
            if ending == "ctrl-c":
                raise KeyboardInterrupt
            write_status(run, step=10_000, state="finished")

    monkeypatch.setattr(time, "sleep", nap)
    result = invoke(run, "--interval", "0.5")
    assert result.exit_code == 0, result.exception
    assert naps == [0.5] * 3
    text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", terminal.getvalue())
    assert "4,000 / 10,000" in text and "5,000 / 10,000" in text
    assert ("Fine-tuning: finished" in text) == (ending == "finished")


def test_a_best_below_every_other_is_still_the_best(tmp_path: Path) -> None:
    found = take_snapshot(_running(tmp_path, [train(0), validation(0, -0.7)]))
    assert found.validation_level == "warning"
    assert found.best is not None and found.best["sharpe"] == -0.7
