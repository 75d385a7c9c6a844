"""Runs to SB3's zips and back: the same actions, and nothing in a zip is ever run."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_fixtures import TINY, market_states, tiny_settings, write_prices
from markets import random_prices
from stable_baselines3 import SAC

import finflow_sb3 as ff
from finflow_sb3 import CQSAC, PortfolioVecEnv
from finflow_sb3.config import Settings
from finflow_sb3.config_files import read_config
from finflow_sb3.errors import ArtefactError, CheckpointError, ConfigError, FinflowError
from finflow_sb3.exchange import Exported, Imported, export_zip, import_zip
from finflow_sb3.opening import open_market
from finflow_sb3.pipeline import evaluate, finetune, pretrain
from finflow_sb3.resuming import resume
from finflow_sb3.runs.checkpoints import CheckpointStore, read_checkpoint
from finflow_sb3.training.trained import load_policy

SEEDED = {"cal_ql": True, "offline_fraction": 0.25, "target_entropy": "seeded", "warmup_steps": 40}
MLP = {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [8], "activation_fn": "Tanh"}}
KINDS: dict[str, dict[str, Any]] = {
    "seeded": SEEDED,
    "scratch": {"ent_coef": 0.1, "n_steps": 2},
    "multiplier": {"cql_alpha_final": None, "cql_target_action_gap": 0.5},
    "mlp": MLP,
}


@dataclasses.dataclass
class Work:
    folder: Path
    runs: dict[str, Path]
    zips: dict[str, Path]
    states: np.ndarray

    def settings(self, kind: str) -> Settings:
        """The run's own, as a user has them in its config.yml."""
        return read_config(self.runs[kind] / "config.yml")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("zips")
    settings = tiny_settings(folder)
    artefact = pretrain(settings).run
    runs, zips = {}, {}
    for kind, changes in KINDS.items():
        own = settings.replace(cqsac=changes)
        runs[kind] = finetune(own, artefact if kind == "seeded" else None).run
        zips[kind] = export_zip(runs[kind], folder / f"{kind}.zip").path
    market = open_market(settings)
    return Work(folder, runs, zips, market_states(market, 300).numpy())


def actions_of(zip_path: Path, states: np.ndarray) -> np.ndarray:
    loaded = CQSAC.load(zip_path, device="cpu")
    return np.asarray(loaded.predict(states, deterministic=True)[0])


def copied(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The zip with members changed."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def edited(members: dict[str, bytes], **values: Any) -> None:
    """Give keys of `data` other values, those that are None go."""
    data = json.loads(members["data"]) | values
    members["data"] = json.dumps({k: v for k, v in data.items() if v is not None}).encode()


# ------------------------------------------------------------------- out


@pytest.mark.parametrize("kind", list(KINDS))
def test_sb3_reads_the_checkpoint_and_acts_the_same(work: Work, kind: str) -> None:
    """In a process that has no prices: the networks are the checkpoint's, bit for bit."""
    loaded = CQSAC.load(work.zips[kind], device="cpu")
    latest = CheckpointStore(work.runs[kind] / "checkpoints").pointed("latest")
    stored = read_checkpoint(latest).tensors["policy"]
    mine = loaded.policy.state_dict()
    assert set(mine) == set(stored)
    assert all(torch.equal(mine[name], stored[name]) for name in mine)
    assert loaded.num_timesteps == int(latest.name.removeprefix("step_"))
    assert loaded.get_env() is None


def test_a_named_checkpoint_and_the_best(work: Work, tmp_path: Path) -> None:
    store = CheckpointStore(work.runs["scratch"] / "checkpoints")
    first = store.all()[0]
    short = f"step_{int(first.name.removeprefix('step_'))}"
    named = export_zip(work.runs["scratch"], tmp_path / "first.zip", short)
    assert isinstance(named, Exported) and named.checkpoint == first
    run = tmp_path / "run"
    shutil.copytree(work.runs["scratch"], run)
    shutil.rmtree(run / "best")
    copy = CheckpointStore(run / "checkpoints")
    copy.point("best", copy.all()[1])
    best = export_zip(run, tmp_path / "best.zip", "best")
    assert best.checkpoint == copy.all()[1] and best.steps > named.steps
    found = [actions_of(path, work.states) for path in (named.path, best.path)]
    assert not np.array_equal(*found)


def test_the_kept_best_policy_acts_as_its_zip(work: Work, tmp_path: Path) -> None:
    """Wherever a validation was best after the start, `best/` and the checkpoint are one."""
    settings = work.settings("seeded").replace(run={"log_dir": str(tmp_path / "logs")})
    imported = import_zip(work.zips["seeded"], settings, trust=True)
    exported = export_zip(imported.run, tmp_path / "best.zip", "best")
    kept = load_policy(imported.run).act(work.states)
    np.testing.assert_array_equal(actions_of(exported.path, work.states), kept)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_zip_goes_on_training(work: Work, kind: str) -> None:
    env = PortfolioVecEnv(open_market(work.settings(kind)), 4, seed=0, episode_length=20)
    loaded = CQSAC.load(work.zips[kind], env=env, device="cpu")
    before = [p.clone() for p in loaded.policy.parameters()]
    updates = loaded._n_updates
    loaded.learn(80, reset_num_timesteps=False)
    assert loaded._n_updates > updates
    pairs = zip(before, loaded.policy.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_a_zip_is_small_and_has_no_market_in_it(work: Work) -> None:
    with zipfile.ZipFile(work.zips["scratch"]) as archive:
        data = json.loads(archive.read("data"))
    assert data["replay_buffer_kwargs"] == {} and data["_last_obs"] is None
    assert data["policy_kwargs"]["layout"]["assets"] == [f"S{i:02d}" for i in range(5)]
    assert work.zips["scratch"].stat().st_size < 300_000


def test_exporting_leaves_generators_alone(work: Work, tmp_path: Path) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(7)
    np.random.seed(7)
    export_zip(work.runs["scratch"], tmp_path / "out.zip")
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])


@pytest.mark.parametrize(
    ("output", "checkpoint", "error", "words"),
    [
        ("out.pkl", "latest", ConfigError, "ends in .zip"),
        ("out.zip", "newest", ConfigError, "is not latest, best or step_"),
        ("out.zip", "step_7", CheckpointError, "finflow checkpoint list"),
    ],
)
def test_export_refuses(
    work: Work, tmp_path: Path, output: str, checkpoint: str, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        export_zip(work.runs["scratch"], tmp_path / output, checkpoint)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_export_refuses_pretraining(work: Work, tmp_path: Path) -> None:
    run = next((work.folder / "logs" / "iql").iterdir())
    with pytest.raises(ArtefactError, match="pretraining"):
        export_zip(run, tmp_path / "out.zip")


# ------------------------------------------------------------------- in


@pytest.mark.parametrize("kind", list(KINDS))
def test_round_trip(work: Work, tmp_path: Path, kind: str) -> None:
    """Run → zip → run → zip: the same tensors, evaluated and gone on with."""
    settings = work.settings(kind).replace(run={"log_dir": str(tmp_path / "logs")})
    imported = ff.import_zip(work.zips[kind], settings, trust=True)
    assert isinstance(imported, Imported) and imported.steps == 240
    assert imported.run.parent == tmp_path / "logs" / "cqsac"
    again = ff.export_zip(imported.run, tmp_path / "again.zip").path
    first, second = (CQSAC.load(path, device="cpu") for path in (work.zips[kind], again))
    for name, state in first.get_parameters().items():
        other = second.get_parameters()[name]
        if name == "policy":
            assert all(torch.equal(state[k], other[k]) for k in state)
        else:
            for index, moments in state["state"].items():
                assert all(torch.equal(v, other["state"][index][k]) for k, v in moments.items())
    for name in first._get_torch_save_params()[1]:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.target_entropy == second.target_entropy
    assert first._n_updates == second._n_updates and first._episode_num == second._episode_num
    np.testing.assert_array_equal(
        actions_of(work.zips[kind], work.states), load_policy(imported.run).act(work.states)
    )
    further = resume(imported.run, n_timesteps=320)
    assert further.finished and further.steps == 320
    moved = CQSAC.load(export_zip(imported.run, tmp_path / "moved.zip").path, device="cpu")
    assert moved._n_updates > first._n_updates


def test_an_imported_run_is_evaluated(work: Work, tmp_path: Path) -> None:
    settings = work.settings("seeded").replace(run={"log_dir": str(tmp_path / "logs")})
    imported = import_zip(work.zips["seeded"], settings, trust=True)
    mine, theirs = evaluate(imported.run), evaluate(work.runs["seeded"])
    assert set(mine.measures) == set(theirs.measures)
    assert mine.report.is_file()


def test_an_imported_run_first_fills_its_buffer_with_its_own_policy(
    work: Work, tmp_path: Path
) -> None:
    settings = work.settings("scratch").replace(run={"log_dir": str(tmp_path / "logs")})
    imported = import_zip(work.zips["scratch"], settings, trust=True)
    own = read_config(imported.run / "config.yml").cqsac
    assert own.warmup_steps == 240 + 40
    stopped = resume(imported.run, n_timesteps=400, stop_at=276)
    state = read_checkpoint(CheckpointStore(stopped.run / "checkpoints").pointed("latest"))
    before = CQSAC.load(work.zips["scratch"], device="cpu")
    assert state.state["counters"]["_n_updates"] == before._n_updates


def test_a_plain_sb3_model_comes_in(work: Work, tmp_path: Path) -> None:
    """A CQSAC that never was in a finflow run."""
    settings = tiny_settings(work.folder, run={"log_dir": str(tmp_path / "logs")})
    env = PortfolioVecEnv(open_market(settings), 4, seed=0, episode_length=20)
    model = CQSAC("MultiExpertPolicy", env, policy_kwargs=dict(TINY), batch_size=16, device="cpu")
    model.learn(140).save(tmp_path / "plain")
    imported = import_zip(tmp_path / "plain.zip", settings, trust=True)
    np.testing.assert_array_equal(
        model.predict(work.states, deterministic=True)[0],
        load_policy(imported.run).act(work.states),
    )


# ------------------------------------------------------------------- refusals


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def bad_data(mark: Path) -> Callable[[dict[str, bytes]], None]:
    pickled = base64.b64encode(pickle.dumps(Hostile(mark))).decode()
    item = {":type:": "<class 'function'>", ":serialized:": pickled}

    def change(members: dict[str, bytes]) -> None:
        edited(members, lr_schedule=item, policy_class=item, observation_space=item)

    return change


def bad_tensors(mark: Path, name: str) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        members[name] = pickle.dumps(Hostile(mark))

    return change


def bad_archive(mark: Path, name: str) -> Callable[[dict[str, bytes]], None]:
    """The same in torch's present format."""

    def change(members: dict[str, bytes]) -> None:
        path = mark.with_suffix(".pth")
        torch.save({"weight": Hostile(mark)}, path)
        members[name] = path.read_bytes()

    return change


@pytest.mark.parametrize("member", ["policy.pth", "critic.optimizer.pth", "pytorch_variables.pth"])
@pytest.mark.parametrize("make", [bad_tensors, bad_archive])
@pytest.mark.parametrize("trust", [True, False])
def test_hostile_tensors_are_not_run(
    work: Work, tmp_path: Path, member: str, make: Any, trust: bool
) -> None:
    mark, logs = tmp_path / "mark", tmp_path / "logs"
    path = copied(work.zips["scratch"], tmp_path / "bad.zip", make(mark, member))
    settings = work.settings("scratch").replace(run={"log_dir": str(logs)})
    with pytest.raises(FinflowError, match=r"run code") as caught:
        import_zip(path, settings, trust=trust)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert (member in str(caught.value)) == trust
    assert not mark.exists() and not list(logs.glob("*/*"))


def test_a_hostile_pickle_in_data_is_not_run(work: Work, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = copied(work.zips["scratch"], tmp_path / "bad.zip", bad_data(mark))
    settings = work.settings("scratch").replace(run={"log_dir": str(tmp_path / "logs")})
    with pytest.raises(ArtefactError, match=r"can run code.*--trust"):
        import_zip(path, settings)
    assert not mark.exists()
    imported = import_zip(path, settings, trust=True)
    assert not mark.exists()
    np.testing.assert_array_equal(
        load_policy(imported.run).act(work.states), actions_of(work.zips["scratch"], work.states)
    )
    # The file would be made: SB3's own reader opens that pickle.
    with pytest.raises(Exception, match=r".*"):
        CQSAC.load(path, device="cpu")
    assert mark.exists()


def shrunk(members: dict[str, bytes]) -> None:
    edited(
        members, policy_kwargs={**json.loads(members["data"])["policy_kwargs"], "n_quantiles": 4}
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("data"), "holds no data"),
        (lambda m: m.update(data=b"\x80\x04nonsense"), "is no JSON"),
        (lambda m: edited(m, cql_alpha=None), "is no CQSAC"),
        (lambda m: m.pop("policy.pth"), r"holds no policy\.pth"),
        (lambda m: m.update({"policy.pth": m["policy.pth"][:999]}), r"policy\.pth can't be read"),
        (lambda m: m.pop("critic.optimizer.pth"), r"lacks the part critic\.optimizer"),
        (lambda m: edited(m, num_timesteps="many"), "num_timesteps in its data is 'many'"),
        (lambda m: edited(m, _n_updates=-1), "_n_updates in its data is -1"),
        (lambda m: edited(m, market_scaler={"means": 3}), "market_scaler"),
        (shrunk, r"has n_quantiles 4, these settings 5"),
    ],
)
def test_what_is_no_whole_zip_of_it_is_refused(
    work: Work, tmp_path: Path, change: Any, words: str
) -> None:
    path = copied(work.zips["scratch"], tmp_path / "bad.zip", change)
    settings = work.settings("scratch").replace(run={"log_dir": str(tmp_path / "logs")})
    with pytest.raises(CheckpointError, match=words) as caught:
        import_zip(path, settings, trust=True)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "logs").glob("*/*"))


def test_truncated_missing_and_foreign_files(work: Work, tmp_path: Path) -> None:
    settings = work.settings("scratch")
    whole = work.zips["scratch"].read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2
    (tmp_path / "bit.zip").write_bytes(whole[:middle] + b"~" + whole[middle + 1 :])
    SAC("MlpPolicy", "Pendulum-v1").save(tmp_path / "sac")
    for name, words in (
        ("half", "not whole"),
        ("bit", "not whole"),
        ("sac", "is no CQSAC"),
        ("none", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=words):
            import_zip(tmp_path / f"{name}.zip", settings, trust=True)


@pytest.mark.parametrize(
    ("kind", "section", "changes", "words"),
    [
        ("scratch", "env_kwargs", {"action_base": "drift"}, "action_base"),
        ("scratch", "env_kwargs", {"gate_scale": 3.0}, "gate_scale 5.0"),
        ("scratch", "cqsac", {"policy_kwargs": {**TINY, "gate_hidden": 7}}, "gate_hidden 6"),
        ("seeded", "cqsac", {"policy_kwargs": {**TINY, "token_hidden": 7}}, "token_hidden 6"),
        (
            "scratch",
            "cqsac",
            {"policy": "MlpPolicy", "policy_kwargs": {"n_quantiles": 5}},
            r"policy lacks actor\.",
        ),
        ("scratch", "cqsac", {"ent_coef": "auto"}, "lacks the part ent_coef_optimizer"),
        ("multiplier", "cqsac", {"cql_target_action_gap": None}, "has the part cql_alpha"),
        ("mlp", "cqsac", {"policy_kwargs": {"net_arch": [8]}}, "activation_fn"),
        ("mlp", "cqsac", {"policy_kwargs": {"net_arch": [9], "activation_fn": "Tanh"}}, "net_arch"),
        ("scratch", "market", {"train_end": "2001-06-29"}, "was scaled otherwise"),
    ],
)
def test_other_settings_are_refused_by_name(
    work: Work, tmp_path: Path, kind: str, section: str, changes: dict[str, Any], words: str
) -> None:
    settings = work.settings(kind).replace(run={"log_dir": str(tmp_path / "logs")})
    with pytest.raises(FinflowError, match=words) as caught:
        import_zip(work.zips[kind], settings.replace(**{section: changes}), trust=True)
    assert "\n" not in str(caught.value) and f"{kind}.zip" in str(caught.value)
    assert not list((tmp_path / "logs").glob("*/*"))


def test_other_assets_are_refused_by_name(work: Work, tmp_path: Path) -> None:
    prices = random_prices(5, 600, seed=0)
    other = dataclasses.replace(prices, assets=("S00", "S01", "S02", "S03", "NEW"))
    path = write_prices(other, tmp_path / "other.csv")
    settings = work.settings("scratch").replace(market={"prices": str(path)})
    with pytest.raises(ArtefactError, match=r"scratch\.zip has other assets.*without NEW"):
        import_zip(work.zips["scratch"], settings, trust=True)
