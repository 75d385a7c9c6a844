"""Where the time of fine-tuning goes: shares, the penalty's part, and that nothing is changed."""

from __future__ import annotations

import gzip
import json
import mmap
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from learning_fixtures import tiny_settings

import finflow_sb3 as ff
from finflow_sb3.config import Settings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.opening import open_market
from finflow_sb3.pipeline import from_scratch, pretrain
from finflow_sb3.profiling import Profile, profile
from finflow_sb3.runs.metrics_log import MetricsLog
from finflow_sb3.training import memory
from finflow_sb3.training.callbacks import TrainingCallback
from finflow_sb3.training.finetune import prepare
from finflow_sb3.training.guard import Guard
from finflow_sb3.training.profiled import Measured, Plan, measure
from finflow_sb3.training.stages import STAGES, StageClock, staged
from finflow_sb3.training.trace_events import BACKWARD, FORWARD, NODE, Reading, penalty_part

ALWAYS = [s for s in STAGES if not s.startswith("CQL")] + ["other"]
PENALTY = ["CQL penalty: draws", "CQL penalty: forward", "CQL penalty: backward"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(autouse=True)
def _short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of twenty updates take seconds to read."""
    monkeypatch.setattr("finflow_sb3.training.profiled.WINDOW", 2)


def settings_in(folder: Path, logs: Path, **cqsac: Any) -> Settings:
    return tiny_settings(folder, cqsac=cqsac, run={"log_dir": str(logs)})


def check(found: Profile, updates: int) -> dict[str, Any]:
    """What holds for every profile; gives its stages by name."""
    stages = {stage.name: stage for stage in found.stages}
    assert sum(stage.share for stage in found.stages) == pytest.approx(1.0, abs=1e-9)
    assert all(stage.share >= 0.0 and stage.ms >= 0.0 for stage in found.stages)
    assert list(stages) == [name for name in (*STAGES, "other") if name in stages]
    whole = 1e3 / found.profiled_updates_per_second
    assert sum(stage.ms for stage in found.stages) == pytest.approx(whole)
    assert found.updates == updates
    ratio = found.updates_per_second / found.profiled_updates_per_second
    assert found.overhead == pytest.approx(ratio - 1.0)
    operators = {operator.name for operator in found.operators}
    assert any(name.startswith("aten::") for name in operators) and not operators & set(STAGES)
    own = [operator.ms for operator in found.operators]
    assert own == sorted(own, reverse=True) and own[-1] >= 0.0
    assert sum(operator.share for operator in found.operators) <= 1.0 + 1e-9
    assert found.peak_memory > 100e6
    written = json.loads((found.output / "profile.json").read_text())
    assert written["updates"] == updates and len(written["stages"]) == len(stages)
    return stages


def names_in(trace: Path) -> list[str]:
    with gzip.open(trace) as file:
        return [event.get("name", "") for event in json.load(file)["traceEvents"]]


def test_stages_shares_and_trace(folder: Path, tmp_path: Path) -> None:
    settings = settings_in(folder, tmp_path / "logs")
    found = ff.profile(settings, steps=6, updates_warmup=2)
    stages = check(found, 6)
    assert set(stages) == {*ALWAYS, *PENALTY}
    once = ["environment", "acting", "replay: storing", "critic targets", "critic forward"]
    once += ["critic backward", "critic optimiser", "actor backward", "target networks"]
    assert all(stages[name].calls == 1.0 for name in [*once, "CQL penalty: backward"])
    # No run, no dataset's note, no metrics: the trace and the figures alone.
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    base = "logs/profile/finflow-US20-v0_1"
    files = {f"{base}/trace.json.gz", f"{base}/profile.json"}
    assert kept == {"logs", "logs/profile", base, *files}
    names = names_in(found.trace)
    assert found.traced_updates == 2 and names.count("critic backward") == 2
    assert {*once, "CQL penalty: forward", "aten::addmm"} <= set(names)


def test_without_the_penalty_it_has_no_stage(folder: Path, tmp_path: Path) -> None:
    off = settings_in(folder, tmp_path, cql_alpha=0.0, cql_alpha_final=None)
    found = profile(off, steps=4, updates_warmup=1, output=tmp_path / "here")
    assert set(check(found, 4)) == set(ALWAYS)
    assert found.output == tmp_path / "here" and found.trace.is_file()


@pytest.mark.parametrize(
    "cqsac",
    [
        {"utd_ratio": 2, "policy_delay": 2, "gradient_steps": 3, "prefetch": True},
        {"cql_alpha_final": None, "cql_target_action_gap": 0.5, "gradient_checkpointing": True},
        {"gradient_steps": -1, "n_steps": 2, "mixed_precision": "bf16"},
    ],
    ids=["ratio", "multiplier", "freely"],
)
def test_options(folder: Path, tmp_path: Path, cqsac: dict[str, Any]) -> None:
    each = {3: 6, 1: 1, -1: 4}[cqsac.get("gradient_steps", 1)]
    found = profile(settings_in(folder, tmp_path, **cqsac), steps=5, updates_warmup=1)
    stages = check(found, -(-5 // each) * each)  # whole rollouts
    assert set(PENALTY) <= set(stages)
    assert ("CQL multiplier" in stages) == ("cql_target_action_gap" in cqsac)
    assert stages["critic backward"].calls == 1.0
    assert stages["actor backward"].calls == pytest.approx(1 / 4 if each == 6 else 1.0, abs=0.1)


@pytest.mark.slow
def test_compiled_halves_are_not_taken_apart(folder: Path, tmp_path: Path) -> None:
    found = profile(settings_in(folder, tmp_path, compile="on"), steps=4)
    stages = check(found, 4)
    assert found.compiled
    inside = {"critic targets", "CQL penalty: forward", "CQL penalty: backward"}
    assert set(stages) == {*ALWAYS, "CQL penalty: draws"} - inside


def test_a_pretrained_run_seeds_it(folder: Path, tmp_path: Path) -> None:
    seeded = {"cal_ql": True, "offline_fraction": 0.25, "target_entropy": "seeded"}
    settings = settings_in(folder, tmp_path, **seeded)
    run = pretrain(settings).run
    check(profile(settings, steps=3, updates_warmup=1, pretrained=run), 3)
    shutil.rmtree(run / "best")
    with pytest.raises(ArtefactError, match="no pretrained artefact"):
        profile(settings, steps=3, pretrained=run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iql", "profile"]


@pytest.mark.parametrize(
    ("arguments", "cqsac", "words"),
    [
        ({"steps": 0}, {}, "steps: 0 leaves nothing"),
        ({"updates_warmup": -1}, {}, "updates_warmup: -1 is negative"),
        ({}, {"gradient_steps": 0}, "gradient_steps: 0 makes no update"),
        ({}, {"policy_kwargs": {"nonsense": 1}}, "unknown key 'nonsense'"),
    ],
)
def test_refusals_leave_nothing_behind(
    folder: Path, tmp_path: Path, arguments: Any, cqsac: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        profile(settings_in(folder, tmp_path, **cqsac), **arguments)
    assert not list(tmp_path.glob("profile/*"))


# ------------------------------------------------------------------- the loop is the real one


def ready(folder: Path, log: MetricsLog) -> tuple[CQSAC, TrainingCallback, ObservedMarket]:
    settings = from_scratch(settings_in(folder, folder / "logs"))
    market = open_market(settings)
    model, _ = prepare(settings, market)
    guard = Guard(settings.monitor, model, log)
    callback = TrainingCallback(market, settings, log, guard, None, on_best=dict)
    return model, callback, market


def measured_on(model: CQSAC, callback: TrainingCallback, trace: Path) -> Measured:
    return measure(model, callback, 240, Plan(2, 5), trace, lambda *_: None)


def test_profiled_updates_are_ordinary_updates(folder: Path, tmp_path: Path) -> None:
    """2 + 5 + 5 updates, the last 5 under the profiler, and 12 that nobody looks at."""
    with MetricsLog(tmp_path / "one.jsonl") as one, MetricsLog(tmp_path / "two.jsonl") as two:
        model, callback, _ = ready(folder, one)
        before = {owner: set(vars(owner)) for owner in (model, model.env, callback)}
        precision = set(vars(model.precision))
        found = measured_on(model, callback, tmp_path / "trace.json.gz")
        assert (found.plain_updates, found.updates) == (5, 5)
        other, theirs, _ = ready(folder, two)
        callbacks = [theirs]
        # As many steps as lie before the one that ends the profile.
        steps = model.num_timesteps - model.n_envs
        other._total_timesteps = 240
        learn_like(other, callbacks, steps)
    assert model._n_updates == other._n_updates == 12
    mine, others = model.policy.state_dict(), other.policy.state_dict()
    assert all(torch.equal(mine[name], others[name]) for name in mine)
    assert torch.equal(model.log_ent_coef, other.log_ent_coef)
    # Nothing of it stays: what is on the instances is what an ordinary run leaves there.
    for owner, twin in ((model, other), (model.env, other.env), (callback, theirs)):
        assert set(vars(owner)) == set(vars(twin)) >= before[owner]
        for name in ("step", "_sample_action", "_batches", "_on_step", "_target_quantiles"):
            assert name not in vars(owner)
    assert set(vars(model.precision)) == precision
    assert model._parts == model._equations()


def learn_like(model: CQSAC, callbacks: list[Any], steps: int) -> None:
    """`learn` with the schedules of 240 steps, stopped after `steps`."""
    from stable_baselines3.common.callbacks import BaseCallback, CallbackList

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps <= steps

    model.learn(max(240, steps), callback=CallbackList([*callbacks, Stop()]), log_interval=None)


def test_an_error_puts_everything_back(folder: Path, tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        model, callback, _ = ready(folder, log)
        owners = (model, model.env, model.precision, callback)
        before = [dict(vars(owner)) for owner in owners]

        def broken() -> None:
            with staged(model, callback, StageClock()):
                assert model._parts is not before[0]["_parts"] and "step" in vars(model.env)
                raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError, match="in the middle"):
            broken()
        assert [dict(vars(owner)) for owner in owners] == before


def test_a_profile_that_breaks_off_ends_the_profiler(folder: Path, tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        model, callback, _ = ready(folder, log)

        def progress(stage: str, done: int, total: int) -> None:
            if stage == "profiling" and done > 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measure(model, callback, 240, Plan(1, 20), tmp_path / "trace.json.gz", progress)
    assert "step" not in vars(model.env)
    assert not torch.autograd._profiler_enabled()  # type: ignore[attr-defined]


# ------------------------------------------------------------------- parts


def event(name: str, start: float, end: float, number: int = -1) -> Any:
    span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return SimpleNamespace(name=name, time_range=span, sequence_nr=number)


def test_the_penaltys_nodes_are_found_by_their_numbers() -> None:
    """5 and 2 of 5 + 2 + 3 + 1: those made in the stage, in the critics' backward pass alone."""
    events = [
        event("aten::mm", 0, 1, 10),  # before the stage
        event("CQL penalty: forward", 2, 9),
        event("aten::mm", 3, 4, 11),
        event("aten::rand", 4, 5),  # makes no node
        event("aten::logsumexp", 5, 8, 12),
        event("aten::add", 9, 10, 13),  # after it
        event("critic backward", 20, 40),
        event(f"{NODE}MmBackward0", 21, 26, 11),
        event(f"{NODE}LogsumexpBackward0", 26, 28, 12),
        event(f"{NODE}MmBackward0", 28, 31, 10),
        event(f"{NODE}AddBackward0", 31, 32, 13),
        event("aten::mm", 22, 25, 11),  # inside a node
        event("actor backward", 50, 60),
        event(f"{NODE}MmBackward0", 51, 59, 11),
    ]
    assert penalty_part(events) == (7.0, 11.0)
    assert penalty_part(events[6:]) == (0.0, 11.0)
    assert penalty_part([]) == (0.0, 0.0)
    assert Reading().penalty_share == 0.0


def test_numbers_of_real_operators() -> None:
    """What torch records: a part without gradients has no share, one with gradients has one."""
    w = torch.randn(40, 40, requires_grad=True)
    for grad in (False, True):
        with torch.profiler.profile() as window:
            loss = (w @ w).sum()
            with torch.profiler.record_function(FORWARD), torch.set_grad_enabled(grad):
                penalty = torch.logsumexp(w @ w, dim=1).sum()
            with torch.profiler.record_function(BACKWARD):
                (loss + penalty).backward()
        part, whole = penalty_part(window.events())
        assert (part > 0.0) == grad and part < whole


def test_a_stage_within_another_stops_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 7.0, 20.0, 21.0])
    monkeypatch.setattr("finflow_sb3.training.stages.time.perf_counter", lambda: next(now))
    clock = StageClock()
    with clock.stage("outer"), clock.stage("inner"):
        pass
    assert clock.around("outer", lambda x: x + 1)(1) == 2
    assert clock.seconds == {"outer": 1.0 + 4.0 + 1.0, "inner": 2.0}
    assert clock.calls == {"outer": 2, "inner": 1}


@pytest.mark.parametrize("status", ["/proc/self/status", "/nowhere"])
def test_peak_memory_is_of_this_process(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    monkeypatch.setattr(memory, "STATUS", Path(status))
    memory.reset_peak_resident()
    before = memory.peak_resident()
    # Pages of its own: an allocator may have kept as much of what other tests freed.
    block = np.frombuffer(mmap.mmap(-1, 160_000_000), dtype=np.uint8)
    block[:] = 1
    grown = memory.peak_resident() - before
    assert 0 <= grown < 400e6
    if status.startswith("/proc"):
        assert grown > 100e6
