from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeline_fixtures import runs_in, tiny_settings, write_prices

from finflow_sb3 import pipeline, resuming
from finflow_sb3.config import OFFLINE_ALGORITHMS, OfflineAlgorithm, Settings
from finflow_sb3.config_files import read_config, write_config
from finflow_sb3.errors import ArtefactError, CheckpointError, ConfigError
from finflow_sb3.evaluation.allocators import ALLOCATORS
from finflow_sb3.evaluation.quick import untrained
from finflow_sb3.offline.dataset_file import read_dataset
from finflow_sb3.pipeline import Evaluated, Finetuned, Pretrained, Trained, Watch
from finflow_sb3.pretrain.artefact import read_artefact


class Notebook(Watch):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.stages: dict[str, list[tuple[int, int]]] = {}

    def progress(self, stage: str, done: int, total: int) -> None:
        self.stages.setdefault(stage, []).append((done, total))

    def started(self, run: Path) -> None:
        self.heard.append(f"started {run.parent.name}")

    def epoch(self, epoch: Any) -> None:
        self.heard.append(f"epoch {epoch.number}")

    def seeded(self, report: Any) -> None:
        self.heard.append("seeded")

    def remark(self, text: str) -> None:
        self.heard.append(text)


@dataclasses.dataclass
class Work:
    folder: Path
    settings: Settings
    watch: Notebook
    pretrained: Pretrained
    finetuned: Finetuned

    @property
    def logs(self) -> Path:
        return self.folder / "logs"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A pretraining run, and one of fine-tuning that was stopped at step 320 of 640."""
    folder = tmp_path_factory.mktemp("work")
    settings = tiny_settings(folder)
    watch = Notebook()
    pretrained = pipeline.pretrain(settings, watch=watch)
    finetuned = pipeline.finetune(settings, pretrained.run, stop_at=320, watch=watch)
    return Work(folder, settings, watch, pretrained, finetuned)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Collecting


def test_the_cache_knows_a_dataset_again_once_the_splits_are_written_out(work: Work) -> None:
    first = pipeline.collect(work.settings)
    written_out = read_config(work.pretrained.run / "config.yml")
    assert written_out.market.train_end is not None
    assert work.settings.market.train_end is None
    assert first.path == work.pretrained.dataset == pipeline.collect(written_out).path


@pytest.mark.parametrize("name", ["data.h5", "data.npz"])
def test_collect_writes_where_it_is_told(work: Work, tmp_path: Path, name: str) -> None:
    settings = work.settings.replace(collect={"behaviours": ("anchor", "contrarian")})
    collected = pipeline.collect(settings, tmp_path / "deep" / name)
    assert collected.path.is_file()
    assert (collected.episodes, collected.transitions) == (8, 8 * 40)
    assert {name: row[0] for name, row in collected.behaviours.items()} == {
        "anchor": 4,
        "contrarian": 4,
    }


@pytest.mark.parametrize("name", ["data.csv", "data", "data.h5.gz"])
def test_collect_refuses_other_endings_before_it_opens_the_market(
    work: Work, tmp_path: Path, name: str
) -> None:
    settings = work.settings.replace(market={"prices": "no such file"})
    with pytest.raises(ConfigError, match=r"ends in \.h5 or \.npz"):
        pipeline.collect(settings, tmp_path / name)


# Pretraining


def test_pretrain_keeps_the_best_epoch(work: Work) -> None:
    written = lines(work.pretrained.run)
    sharpes = [line["validation_sharpe"] for line in written]
    assert [line["epoch"] for line in written] == [1, 2]
    assert work.pretrained.best_epoch == 1 + sharpes.index(max(sharpes))
    assert work.pretrained.validation["sharpe"] == max(sharpes)
    facts = read_artefact(work.pretrained.run / "best").facts
    assert facts == {
        "epoch": work.pretrained.best_epoch,
        "validation": work.pretrained.validation,
    }


def test_pretrain_gives_the_figures_of_the_zero_action_beside(work: Work) -> None:
    market = pipeline.open_market(work.settings)
    assert work.pretrained.untrained == untrained(market, work.settings.env_kwargs)


def test_a_watch_hears_of_every_stage(work: Work) -> None:
    assert work.watch.heard == ["started iql", "epoch 1", "epoch 2", "started cqsac", "seeded"]
    assert work.watch.stages["episodes"] == [(8, 8)]
    assert work.watch.stages["pretraining"] == [(step, 6) for step in range(1, 7)]
    steps = [done for done, total in work.watch.stages["fine-tuning"] if total == 640]
    assert steps == list(range(0, 321, 16))


@pytest.mark.parametrize("kept", [False, True])
def test_a_run_that_fails_leaves_a_folder_only_if_it_holds_something(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    def fail(*_: Any, on_best: Any, **__: Any) -> None:
        if kept:
            on_best(read_artefact(work.pretrained.run / "best"))
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_offline", fail)
    settings = work.settings.replace(run={"log_dir": str(tmp_path)})
    with pytest.raises(KeyboardInterrupt):
        pipeline.pretrain(settings)
    assert len(runs_in(tmp_path)) == kept


# Fine-tuning


def test_a_stopped_run_says_so_and_goes_on(work: Work, tmp_path: Path) -> None:
    assert (work.finetuned.steps, work.finetuned.finished) == (320, False)
    assert work.finetuned.seeded is not None
    watch = Notebook()
    settings = work.settings.replace(run={"log_dir": str(tmp_path)})
    stopped = pipeline.finetune(settings, work.pretrained.run, stop_at=100)
    resumed = resuming.resume(stopped.run, n_timesteps=160, watch=watch)
    assert (resumed.run, resumed.steps, resumed.finished) == (stopped.run, 160, True)
    assert watch.heard == [
        "cqsac.n_timesteps is 160 from here on; it was 640.",
        "started cqsac",
        "Resuming at step 112 of 160.",
    ]
    assert read_config(stopped.run / "config.yml").cqsac.n_timesteps == 160
    best = max(line["sharpe"] for line in lines(stopped.run) if line["kind"] == "validation")
    assert resumed.best == best


def test_a_resume_that_fails_changes_nothing(work: Work) -> None:
    files = {path: path.read_bytes() for path in work.finetuned.run.rglob("*") if path.is_file()}
    weights = work.finetuned.run / "checkpoints" / "step_000000000320" / "policy.safetensors"
    weights.write_bytes(files[weights][:-7])
    try:
        with pytest.raises(CheckpointError, match=r"policy\.safetensors: has \d+ bytes"):
            resuming.resume(weights.parent, n_timesteps=9999)
    finally:
        weights.write_bytes(files[weights])
    after = {path: path.read_bytes() for path in work.finetuned.run.rglob("*") if path.is_file()}
    assert after == files


def test_a_checkpoint_is_found_from_within_its_folder(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work.finetuned.run / "checkpoints")
    watch = Notebook()
    resumed = resuming.resume("step_000000000320", stop_at=320, watch=watch)
    assert resumed.run == work.finetuned.run
    assert watch.heard[-1] == "Resuming at step 320 of 640."


def test_a_resumed_run_mixes_in_the_dataset_that_it_was_given(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = pipeline.collect(work.settings.replace(run={"seed": 5}), tmp_path / "five.h5").path
    settings = work.settings.replace(
        cqsac={"offline_fraction": 0.5}, run={"log_dir": str(tmp_path / "logs")}
    )
    stopped = pipeline.finetune(settings, work.pretrained.run, given, stop_at=16)
    seen = []
    real = pipeline.run_cqsac

    def spy(
        settings: Any, market: Any, folder: Any, artefact: Any, data: Any, *rest: Any, **more: Any
    ) -> Any:
        seen.append(data)
        return real(settings, market, folder, artefact, data, *rest, **more)

    monkeypatch.setattr(pipeline, "run_cqsac", spy)
    resuming.resume(stopped.run, stop_at=16)
    assert [data.settings["seed"] for data in seen] == [5]
    assert (seen[0].action == read_dataset(given).action).all()


@pytest.mark.parametrize(
    ("changes", "dataset", "error", "part"),
    [
        (
            {"run": {"device": "cpu"}, "cqsac": {"mixed_precision": "fp16"}},
            None,
            ConfigError,
            "CUDA",
        ),
        ({}, "data.h5", ConfigError, "offline_fraction is 0"),
        ({"cqsac": {"offline_fraction": 0.5}}, "data.h5", ArtefactError, "no such dataset"),
        ({"env_kwargs": {"action_base": "drift"}}, None, ArtefactError, "action_base"),
    ],
)
def test_finetune_refuses_without_leaving_a_run(
    work: Work, tmp_path: Path, changes: Any, dataset: Any, error: Any, part: str
) -> None:
    settings = work.settings.replace(**changes).replace(run={"log_dir": str(tmp_path)})
    with pytest.raises(error) as caught:
        pipeline.finetune(settings, work.pretrained.run, dataset)
    assert part in str(caught.value)
    assert runs_in(tmp_path) == []


def test_the_two_kinds_of_runs_are_told_apart(work: Work) -> None:
    with pytest.raises(ArtefactError, match="finetune --pretrained"):
        resuming.resume(work.pretrained.run)
    with pytest.raises(ArtefactError, match="no pretrained artefact"):
        pipeline.finetune(work.settings, work.finetuned.run)


# Evaluation


@pytest.fixture(scope="module")
def evaluated(work: Work) -> Evaluated:
    return pipeline.evaluate(work.pretrained.run)


def test_evaluate_puts_the_policy_beside_the_rules_at_both_lags(evaluated: Evaluated) -> None:
    assert evaluated.policy == "iql"
    assert list(evaluated.measures) == [
        "iql",
        "equal_weight",
        "buy_and_hold",
        *ALLOCATORS,
        "anchors' average",
        *(f"anchor: {n}" for n in ("volatility", "correlation", "momentum", "defensive", "growth")),
    ]
    assert all(set(by_lag) == {"lag_0", "lag_1"} for by_lag in evaluated.measures.values())
    assert evaluated.measures["buy_and_hold"]["lag_0"]["turnover"] == 0.0


def test_the_report_has_the_same_figures(evaluated: Evaluated) -> None:
    content = json.loads((evaluated.report.parent / "metrics.json").read_text())
    for curve in content["curves"]:
        found = evaluated.measures[curve["name"]][f"lag_{curve['execution_lag']}"]
        assert curve["measures"] == pytest.approx(found, nan_ok=True)
    assert content["verdict"]["sentence"] == evaluated.verdict


def test_evaluate_says_that_a_universe_is_another(work: Work, tmp_path: Path) -> None:
    other = write_prices(tmp_path / "other.csv", "ABCDEX")
    found = pipeline.evaluate(work.pretrained.run, str(other))
    assert any("trained on 6 assets, of which 5 are among these 6" in n for n in found.notes)


# All in a row


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The stages, replaced by notes of how they were called."""
    calls: list[tuple[Any, ...]] = []

    def pretrain(
        settings: Settings, dataset: Any, watch: Any, plan: str, algo: OfflineAlgorithm, **_: Any
    ) -> Pretrained:
        calls.append(("pretrain", settings.offline(algo).epochs, dataset))
        assert plan in ("full", "offline")
        return Pretrained(Path("p"), Path("d"), 1, True, 1, {}, {})

    def finetune(settings: Settings, run: Any, dataset: Any, watch: Any, **_: Any) -> Finetuned:
        calls.append(("finetune", run, dataset))
        return Finetuned(Path("f"), 1, settings.run.seed == 0, None, {}, None)

    def evaluate(run: Path, watch: Any) -> str:
        calls.append(("evaluate", run))
        return "evaluated"

    for stage in (pretrain, finetune, evaluate):
        monkeypatch.setattr(pipeline, stage.__name__, stage)
        monkeypatch.setattr(resuming, stage.__name__, stage, raising=False)
    return calls


@pytest.mark.parametrize(
    ("mode", "seed", "expected"),
    [
        (
            "full",
            0,
            [("pretrain", 50, None), ("finetune", Path("p"), None), ("evaluate", Path("f"))],
        ),
        (
            "demo",
            0,
            [("pretrain", 8, None), ("finetune", Path("p"), None), ("evaluate", Path("f"))],
        ),
        ("offline", 0, [("pretrain", 50, None), ("evaluate", Path("p"))]),
        ("online", 0, [("finetune", None, None), ("evaluate", Path("f"))]),
        ("full", 1, [("pretrain", 50, None), ("finetune", Path("p"), None)]),  # stopped
    ],
)
@pytest.mark.parametrize("algo", OFFLINE_ALGORITHMS)
def test_train_runs_the_stages_of_its_mode(
    stages: list[Any], mode: Any, seed: int, expected: list[Any], algo: OfflineAlgorithm
) -> None:
    settings = Settings().replace(run={"seed": seed})
    trained = pipeline.train(settings, mode, offline_algo=algo)
    assert stages == expected
    assert (trained.evaluated is None) == (seed == 1)


@pytest.mark.parametrize(("fraction", "mixed"), [(0.0, None), (0.5, "data.h5")])
def test_train_mixes_the_dataset_in_where_asked_for(
    stages: list[Any], fraction: float, mixed: str | None
) -> None:
    settings = Settings().replace(cqsac={"offline_fraction": fraction})
    pipeline.train(settings, "full", "data.h5")
    assert stages[:2] == [("pretrain", 50, "data.h5"), ("finetune", Path("p"), mixed)]


def test_continue_training_takes_both_kinds_of_runs(work: Work, stages: list[Any]) -> None:
    trained = resuming.continue_training(work.pretrained.run)
    assert stages == [("finetune", work.pretrained.run, None), ("evaluate", Path("f"))]
    assert isinstance(trained, Trained)


def test_continue_training_resumes_and_evaluates(
    stages: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def resume(run: Path, **_: Any) -> Finetuned:
        return Finetuned(run, 1, True, None, {}, None)

    monkeypatch.setattr(resuming, "resume", resume)
    (tmp_path / "config.yml").write_text("default: {}\n")
    resuming.continue_training(tmp_path)
    assert stages == [("evaluate", tmp_path)]


def test_the_best_checkpoint_outlives_newer_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation Sharpe rises to its best at the second backtest and falls after it."""
    sharpes = iter([0.0, 1.0, *([0.5] * 20)])
    figures = {"annual_return": 0.0, "max_drawdown": 0.0, "turnover": 0.0, "excess": 0.0}
    monkeypatch.setattr(
        "finflow_sb3.training.callbacks.validate",
        lambda *_: {"sharpe": next(sharpes), **figures},
    )
    settings = tiny_settings(
        tmp_path,
        run={
            "tensorboard": False,
            "evaluate_interval": 2,
            "checkpoint_interval": 2,
            "max_checkpoints": 2,
            "log_dir": str(tmp_path / "logs"),
        },
    )
    done = pipeline.finetune(settings)
    folder = done.run / "checkpoints"
    kept = sorted(path.name for path in folder.glob("step_*"))
    best = json.loads((folder / "best.json").read_text())
    assert len(kept) == 2
    assert best["checkpoint"] == kept[0] == "step_000000000080"
    assert best["sharpe"] == done.best == 1.0
    assert json.loads((folder / "latest.json").read_text())["checkpoint"] == kept[1]


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda table: table.rename(columns={"A": "Z"}), "other assets: without A and with Z"),
        (lambda table: table * 1.0 + 0.01, "trained on other prices"),
    ],
)
def test_resume_refuses_another_universe_and_another_past(
    work: Work, tmp_path: Path, edit: Any, part: str
) -> None:
    import pandas as pd

    run = tmp_path / "run"
    shutil.copytree(work.finetuned.run, run)
    table = pd.read_csv(work.folder / "prices.csv", index_col=0)
    edit(table).to_csv(tmp_path / "other.csv")
    settings = read_config(run / "config.yml")
    write_config(
        settings.replace(market={"prices": str(tmp_path / "other.csv")}), run / "config.yml"
    )
    with pytest.raises(ArtefactError, match=part):
        resuming.resume(run)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"env_kwargs": {"fee": 0.005}}, "collected with fee 0.001, not 0.005"),
        ({"market": {"train_fraction": 0.3}}, "reaches beyond the training split"),
    ],
)
def test_a_dataset_of_another_market_or_environment_is_refused(
    work: Work, tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    given = tmp_path / "given.h5"
    pipeline.collect(work.settings, given)
    with pytest.raises(ArtefactError, match=part):
        pipeline.pretrain(work.settings.replace(**changes), given)


def test_a_run_that_keeps_no_best_is_judged_by_its_last_policy(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    settings = settings.replace(run={"save_best": False, "log_dir": str(tmp_path / "logs")})
    done = pipeline.finetune(settings)
    assert not (done.run / "best").exists()
    assert pipeline.evaluate(done.run).measures["cqsac"]["lag_0"]["turnover"] >= 0.0


def test_going_on_from_an_older_checkpoint_leaves_what_came_after(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path).replace(run={"checkpoint_interval": 2})
    done = pipeline.finetune(settings, stop_at=320)
    folder = done.run / "checkpoints"
    first, *later = sorted(path.name for path in folder.glob("step_*"))
    assert later
    resumed = resuming.resume(folder / first, stop_at=1)
    kept = sorted(path.name for path in folder.glob("step_*"))
    assert first == "step_000000000000"
    assert kept == [first, f"step_{resumed.steps:012d}"]
    assert resumed.steps == 16
