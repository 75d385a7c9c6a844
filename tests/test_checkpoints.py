"""Checkpoints, the metrics log and run folders: whole or not at all."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finflow_sb3 import manifests
from finflow_sb3.config import Settings
from finflow_sb3.errors import ArtefactError, CheckpointError, StorageError
from finflow_sb3.runs.checkpoints import CheckpointStore, read_checkpoint
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.metrics_log import MetricsLog
from finflow_sb3.runs.random_state import (
    global_random_state,
    optimizer_state,
    restore_global_random_state,
    restore_optimizer,
)

TENSORS = {
    "policy": {
        "a.weight": torch.arange(6.0).view(2, 3),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    },
    "random": {
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "counts": torch.tensor([2**40], dtype=torch.int64),
    },
}
STATE = {"step": 7, "big": 2**127 + 1, "nested": {"x": [1.5, None, "é"]}, "third": 1 / 3}


def write(store: CheckpointStore, step: int = 7) -> Path:
    return store.write(step, TENSORS, STATE)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    back = read_checkpoint(write(CheckpointStore(tmp_path)))
    assert back.state == STATE
    assert set(back.tensors) == set(TENSORS)
    for stem, named in TENSORS.items():
        assert set(back.tensors[stem]) == set(named)
        for name, value in named.items():
            found = back.tensors[stem][name]
            assert found.dtype == value.dtype and torch.equal(found, value)


def test_tensors_that_are_views_survive(tmp_path: Path) -> None:
    """A transposed tensor, and two names for parts of one storage."""
    base = torch.arange(12.0).view(3, 4)
    path = CheckpointStore(tmp_path).write(1, {"x": {"t": base.T, "row": base[1]}}, {})
    back = read_checkpoint(path).tensors["x"]
    assert torch.equal(back["t"], base.T) and torch.equal(back["row"], base[1])


def test_writing_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    write(store)
    path = store.write(7, {"only": {"x": torch.ones(1)}}, {"new": True})
    assert read_checkpoint(path).state == {"new": True}
    assert names(path) == ["manifest.json", "only.safetensors", "state.json"]
    assert names(tmp_path) == ["latest.json", path.name]


@pytest.mark.parametrize(
    ("keep", "steps", "best", "left"),
    [
        (3, 6, None, [3, 4, 5]),
        (3, 6, 0, [0, 4, 5]),
        (3, 6, 5, [3, 4, 5]),
        (1, 4, None, [3]),
        (1, 4, 1, [1, 3]),
        (10, 3, 0, [0, 1, 2]),
    ],
)
def test_retention_keeps_the_best_and_the_latest(
    tmp_path: Path, keep: int, steps: int, best: int | None, left: list[int]
) -> None:
    store = CheckpointStore(tmp_path, keep)
    for step in range(steps):
        path = write(store, step)
        if step == best:
            store.point("best", path, sharpe=1.0)
    assert [p.name for p in store.all()] == [f"step_{s:012d}" for s in left]
    assert store.pointed("latest").name == f"step_{steps - 1:012d}"
    if best is not None:
        read_checkpoint(store.pointed("best"))


@settings(max_examples=15)
@given(
    keep=st.integers(1, 5),
    marks=st.lists(st.booleans(), min_size=1, max_size=12),
)
def test_retention_never_loses_what_is_pointed_to(
    keep: int, marks: list[bool], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("run"), keep)
    best = None
    for step, better in enumerate(marks):
        path = store.write(step, {}, {"step": step})
        assert read_checkpoint(store.pointed("latest")).state == {"step": step}
        if better:
            best = step
            store.point("best", path)
        if best is not None:
            assert read_checkpoint(store.pointed("best")).state == {"step": best}
        assert len(store.all()) <= max(keep, 2)


# ------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["policy.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [("missing", "missing"), ("truncated", "truncated"), ("altered", "altered")],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str, message: str) -> None:
    path = write(CheckpointStore(tmp_path)) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{name}: .*{message}") as caught:
        read_checkpoint(path.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"{}", b'{"format": "other"}', b'{"format": "finflow-checkpoint-1"}'],
)
def test_a_bad_manifest_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = write(CheckpointStore(tmp_path)) / "manifest.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_checkpoint(path.parent)


def test_a_manifest_reaches_no_file_outside(tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes(b"secret")
    path = write(CheckpointStore(tmp_path / "run"))
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest[manifests.CHECKSUM]
    manifest["files"]["../../outside.safetensors"] = {"sha256": "0", "size": 6}
    (path / "manifest.json").write_bytes(manifests._signed(manifest))
    with pytest.raises(CheckpointError, match="missing"):
        read_checkpoint(path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0.0, 0.9999), bit=st.integers(0, 7), cut=st.booleans())
def test_any_change_to_a_manifest_is_seen(
    tmp_path: Path, place: float, bit: int, cut: bool
) -> None:
    path = write(CheckpointStore(tmp_path)) / "manifest.json"
    content = path.read_bytes()
    at = int(place * len(content))
    flipped = content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]
    path.write_bytes(content[:at] if cut else flipped)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_checkpoint(path.parent)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no latest checkpoint"):
        CheckpointStore(tmp_path).pointed("latest")


# ------------------------------------------------------------------- failures in the middle


@pytest.mark.parametrize("fails_at", range(6))
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    store = CheckpointStore(tmp_path)
    first = write(store, 1)
    calls = []
    genuine = os.fsync

    def failing(handle: int) -> None:
        calls.append(handle)
        if len(calls) == fails_at + 1:
            raise OSError(28, "No space left on device")
        genuine(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError, match="disk full") as caught:
        write(store, 2)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    # Three files, the manifest and their folder come first; then the new folder has its name.
    new = ["step_000000000002"] if fails_at == 5 else []
    assert names(tmp_path) == ["latest.json", first.name, *new]
    assert store.pointed("latest") == first
    assert read_checkpoint(first).state == STATE
    assert read_checkpoint(write(store, 2)).state == STATE


def test_a_failure_at_the_rename_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the same step is written again: the old checkpoint stays whole."""
    store = CheckpointStore(tmp_path)
    first = write(store, 1)
    genuine = Path.rename

    def failing(self: Path, target: Any) -> Any:
        if Path(target) == first and self.name.endswith(".new"):
            raise OSError(5, "no")
        return genuine(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StorageError, match="no"):
        store.write(1, {}, {"new": True})
    monkeypatch.undo()
    assert names(tmp_path) == ["latest.json", first.name]
    assert read_checkpoint(first).state == STATE


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    stale = tmp_path / ".step_000000000001.4242"
    stale.mkdir()
    (stale / "policy.safetensors").write_bytes(b"half")
    path = write(store, 2)
    assert names(tmp_path) == ["latest.json", path.name]


def test_files_are_synchronised_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    sync, rename, replace = os.fsync, Path.rename, os.replace

    def recorded_sync(handle: int) -> None:
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        sync(handle)

    def recorded_rename(self: Path, target: Any) -> Any:
        events.append(("rename", Path(target).name))
        return rename(self, target)

    def recorded_replace(source: Any, target: Any) -> None:
        events.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    monkeypatch.setattr(os, "replace", recorded_replace)
    path = write(CheckpointStore(tmp_path))
    renamed = events.index(("rename", path.name))
    for name in names(path):
        assert events.index(("sync", name)) < renamed, name
    assert any(e == "sync" and n.startswith(f".{path.name}") for e, n in events[:renamed])
    after = events[renamed + 1 :]
    assert after.index(("sync", tmp_path.name)) < after.index(("rename", "latest.json"))


# ------------------------------------------------------------------- metrics


def test_metrics_are_cut_to_what_the_checkpoint_knew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(1, a=0.5)
        size = log.size
        log.write(2, a=0.25)
    with MetricsLog(path, size=size) as log:
        assert log.size == size
        log.write(2, a=0.75)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "a": 0.5}, {"step": 2, "a": 0.75}]


@pytest.mark.parametrize("gone", [True, False])
def test_lost_metrics_are_not_filled_with_zeros(tmp_path: Path, gone: bool) -> None:
    path = tmp_path / "metrics.jsonl"
    if not gone:
        path.write_bytes(b'{"step": 1}\n')
    with MetricsLog(path, size=100) as log:
        log.write(2)
    content = path.read_bytes()
    assert b"\0" not in content
    assert [json.loads(x)["step"] for x in content.splitlines()] == ([2] if gone else [1, 2])


def test_a_new_log_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("old\n")
    with MetricsLog(path) as log:
        log.write(3, x=float("nan"), y=[float("inf"), 1], z={"a": 2.0})
    assert json.loads(path.read_text()) == {"step": 3, "x": None, "y": [None, 1], "z": {"a": 2.0}}


# ------------------------------------------------------------------- random states, optimisers


def test_random_states_go_through_a_checkpoint(tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    np.random.normal()  # leaves a second Gaussian waiting

    def draw() -> list[float]:
        return [random.random(), np.random.normal(), np.random.rand(), float(torch.rand(()))]

    tensors, plain = global_random_state()
    path = CheckpointStore(tmp_path).write(0, {"random": tensors}, {"random": plain})
    expected = draw() + draw()
    draw()
    back = read_checkpoint(path)
    restore_global_random_state(back.tensors["random"], back.state["random"])
    assert draw() + draw() == expected


@pytest.mark.parametrize("steps", [0, 3])
def test_an_optimiser_goes_on_as_it_would_have(tmp_path: Path, steps: int) -> None:
    def step(net: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        net(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()

    torch.manual_seed(0)
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    mine = torch.optim.Adam(first.parameters(), lr=0.01, betas=(0.8, 0.9))
    for seed in range(steps):
        step(first, mine, seed)
    tensors, groups = optimizer_state(mine)
    path = CheckpointStore(tmp_path).write(0, {"o": tensors}, {"groups": groups})
    back = read_checkpoint(path)
    second.load_state_dict(first.state_dict())
    other = torch.optim.Adam(second.parameters(), lr=0.5)
    restore_optimizer(other, back.tensors["o"], back.state["groups"])
    for net, optimizer in ((first, mine), (second, other)):
        for seed in range(10, 13):
            step(net, optimizer, seed)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------- folders


def test_run_folders_count_up(tmp_path: Path) -> None:
    paths = [RunFolder.create(tmp_path, "cqsac", "finflow/US20-v0").path for _ in range(3)]
    assert [p.name for p in paths] == [f"finflow-US20-v0_{n}" for n in (1, 2, 3)]
    paths[0].rmdir()
    assert RunFolder.create(tmp_path, "cqsac", "finflow/US20-v0").path.name.endswith("_4")


def test_settings_stand_beside_the_run(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "iql", "finflow/US20-v0")
    settings = Settings().replace(cqsac={"gamma": 0.9}, run={"seed": 5})
    folder.write_settings(settings)
    assert RunFolder.open(folder.path).settings() == settings


@pytest.mark.parametrize("made", [False, True])
def test_opening_what_is_no_run(tmp_path: Path, made: bool) -> None:
    path = tmp_path / "run"
    if made:
        path.mkdir()
    with pytest.raises(ArtefactError, match="run"):
        RunFolder.open(path)
