"""Killed at any moment, damaged on disk, out of space: a run goes on from its last checkpoint."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import crash_worker
import pytest
from crash_worker import INTERVAL, STEPS, begin, go_on, write_and_die, write_one
from learning_fixtures import run_files, tiny_settings

from finflow_sb3.errors import CheckpointError, StorageError
from finflow_sb3.pipeline import Watch, finetune
from finflow_sb3.resuming import resume
from finflow_sb3.runs.checkpoints import Checkpoint, CheckpointStore, read_checkpoint

KILLS = 30
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["crash_worker"])


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    """The server that processes are forked from imports once for all; it needs the path to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        started(int).join()
        yield


def started(target: Any, *args: Any) -> ForkServerProcess:
    process = SERVER.Process(target=target, args=args)
    process.start()
    return process


def the_run(folder: Path) -> Path:
    (run,) = (folder / "logs" / "cqsac").iterdir()
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    process = started(begin, folder)
    process.join()
    assert process.exitcode == 0
    return the_run(folder)


def newest_step(run: Path) -> int:
    return max((int(p.name[5:]) for p in (run / "checkpoints").glob("step_*")), default=-1)


def last_line_step(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def assert_same_end(run: Path, whole: Path) -> None:
    mine, theirs = run_files(run), run_files(whole)
    assert mine.metrics == theirs.metrics
    assert mine.best == theirs.best
    assert without_settings(mine.checkpoint) == without_settings(theirs.checkpoint)


def without_settings(files: dict[str, bytes]) -> dict[str, Any]:
    """A checkpoint's files; runs in different folders differ in the settings' paths."""
    state = json.loads(files["state.json"])
    del state["settings"]
    return {**files, "state.json": state}


def wait_for_a_write(process: ForkServerProcess, folder: Path) -> None:
    """Until the process is writing a checkpoint, or has ended."""
    while process.is_alive() and not any(folder.glob("logs/cqsac/*/checkpoints/.step_*")):
        pass


def test_killed_at_thirty_random_moments(whole: Path, tmp_path: Path) -> None:
    """Each third one while it writes a checkpoint; and each time it comes to the same end."""
    rng = random.Random(0)
    kills = in_a_write = runs = 0
    while kills < KILLS or runs == 0:
        folder = tmp_path / str(runs)
        folder.mkdir()
        shutil.copy(whole.parents[2] / "prices.csv", folder)
        process = started(begin, folder)
        while True:
            process.join(rng.uniform(0.05, 2.0) if kills < KILLS else None)
            if kills % 3 == 0:
                wait_for_a_write(process, folder)
            if not process.is_alive():
                assert process.exitcode == 0
                break
            process.kill()
            process.join()
            kills += 1
            logs = folder / "logs" / "cqsac"
            if not logs.is_dir() or not (the_run(folder) / "market.json").is_file():
                shutil.rmtree(logs, ignore_errors=True)  # killed before training began
                process = started(begin, folder)
                continue
            run = the_run(folder)
            in_a_write += any((run / "checkpoints").rglob(".*"))
            assert last_line_step(run) - newest_step(run) <= INTERVAL
            process = started(go_on, run)
        assert_same_end(the_run(folder), whole)
        runs += 1
    assert kills == KILLS and in_a_write >= 5


@pytest.mark.parametrize("step", [1, 4, 6])
def test_killed_between_any_two_calls_of_a_write(tmp_path: Path, step: int) -> None:
    """The names on disk change at these calls alone: each moment of a write is one of them."""
    before = tmp_path / "before"
    for earlier in range(step):
        write_one(CheckpointStore(before, keep=2), earlier)
    at, ended = 0, False
    while not ended:
        folder = tmp_path / f"killed_{at}"
        shutil.copytree(before, folder)
        process = started(write_and_die, folder, step, at)
        process.join()
        ended = process.exitcode == 0
        warnings: list[str] = []
        store = CheckpointStore(folder, keep=2)
        for name in ("latest", "best"):
            if (folder / f"{name}.json").is_file():
                read_checkpoint(store.pointed(name))
        newest = store.newest_whole(warnings.append)
        assert newest is not None and not warnings
        assert newest.step in (step - 1, step)
        assert_holds(newest)
        # What comes next is as it would have been, and nothing is left lying about.
        for later in range(newest.step + 1, step + 3):
            assert_holds(read_checkpoint(write_one(store, later)))
        assert not [path.name for path in folder.rglob(".*")]
        kept = {path.name for path in store.all()}
        assert len(kept) == 2 and store.pointed("latest").name in kept
        at += 1
    assert at > 10


def assert_holds(checkpoint: Checkpoint) -> None:
    """All of a checkpoint of `crash_worker.write_one` is there."""
    step = checkpoint.step
    assert checkpoint.state == {"step": step}
    assert (checkpoint.tensors["policy"]["w"] == float(step)).all()
    slots = [x for a, b, file in checkpoint.rows() for x in file["x"].tolist()]
    rows = crash_worker.Appended(step)
    assert slots[-(rows.stop - rows.first) :] == list(range(rows.first, rows.stop))


def damaged(content: bytes, how: str) -> bytes:
    if how == "cut":
        return content[:-1]
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


class Notebook(Watch):
    def __init__(self) -> None:
        self.remarks: list[str] = []

    def remark(self, text: str) -> None:
        self.remarks.append(text)


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_damage_to_any_file_of_the_latest_checkpoint(whole: Path, tmp_path: Path, how: str) -> None:
    """It is named, and the run goes on from the one before to the same end."""
    latest = sorted((whole / "checkpoints").glob("step_*"))[-1]
    own = {entry["name"] for entry in segments_of(latest)}
    own -= {entry["name"] for entry in segments_of(sorted(latest.parent.glob("step_*"))[-2])}
    assert len(own) == 1  # what the latest one added
    files = [latest.name + "/" + path.name for path in sorted(latest.iterdir())]
    for number, name in enumerate([*files, *(f"replay/{name}" for name in own)]):
        run = tmp_path / str(number)
        shutil.copytree(whole, run)
        file = run / "checkpoints" / name
        file.write_bytes(damaged(file.read_bytes(), how))
        watch = Notebook()
        done = resume(run, watch=watch)
        assert done.finished
        assert watch.remarks[0].startswith(f"{file}: "), name
        assert watch.remarks[0].endswith("trying the one before")
        assert f"Resuming at step {done.steps - INTERVAL:,}" in watch.remarks[-1]
        assert_same_end(run, whole)


def segments_of(checkpoint: Path) -> list[dict[str, Any]]:
    return list(json.loads((checkpoint / "manifest.json").read_text())["segments"])


def test_a_damaged_segment_that_all_checkpoints_share(whole: Path, tmp_path: Path) -> None:
    """The run goes on with the transitions that are left, and says how many are gone."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    best = CheckpointStore(run / "checkpoints").pointed("best")
    shutil.rmtree(best)  # it is old, and shares nothing with the others
    named = [{e["name"] for e in segments_of(p)} for p in (run / "checkpoints").glob("step_*")]
    shared = set.intersection(*named)
    entries = segments_of(max((run / "checkpoints").glob("step_*")))
    last_shared = [e for e in entries if e["name"] in shared][-1]
    file = run / "checkpoints" / "replay" / last_shared["name"]
    file.write_bytes(damaged(file.read_bytes(), "cut"))
    watch = Notebook()
    done = resume(run, n_timesteps=STEPS + 40, watch=watch)
    assert done.finished and done.steps == STEPS + 40
    lost = last_shared["stop"] - entries[0]["start"]
    assert any(f"goes on without {lost} slots" in remark for remark in watch.remarks)
    again = read_checkpoint(max((run / "checkpoints").glob("step_*")))
    assert again.segments[0].start == 0 and again.segments[-1].stop == 50 - lost + 10


def test_no_checkpoint_is_whole(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for path in (run / "checkpoints").glob("step_*"):
        (path / "policy.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"policy\.safetensors: missing.*no other"):
        resume(run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "finflow-test", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_stops_with_a_line(tmp_path: Path, small_disk: Path, tensorboard: bool) -> None:
    (small_disk / "ballast").write_bytes(bytes(900_000))
    settings = tiny_settings(tmp_path).replace(**crash_worker.CRASHING)
    settings = settings.replace(
        cqsac={"n_timesteps": 100_000, "buffer_size": 100_000},
        run={"log_dir": str(small_disk / "logs"), "tensorboard": tensorboard, "max_checkpoints": 2},
    )
    with pytest.raises(StorageError, match="disk full") as caught:
        finetune(settings)
    message = str(caught.value)
    assert "\n" not in message
    run = the_run(small_disk)
    assert message.endswith(f"go on with finflow finetune --resume {run}")
    store = CheckpointStore(run / "checkpoints")
    for name in ("latest", "best"):
        read_checkpoint(store.pointed(name))
    for line in (run / "metrics.jsonl").read_bytes().splitlines():
        json.loads(line)
    assert not list((run / "checkpoints").rglob(".*")), "what was half written is gone"
    (small_disk / "ballast").unlink()
    before = newest_step(run)
    more = resume(run, n_timesteps=before + 2 * INTERVAL)
    assert more.finished and more.steps == before + 2 * INTERVAL
