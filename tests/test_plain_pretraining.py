"""Pretraining without a market: what is learned, kept, handed over exactly, and refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from plain_fixtures import (
    pendulum_episodes,
    random_episodes,
    write_d3rlpy_file,
    write_minari_data,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from typer.testing import CliRunner

from finflow_sb3.cli.app import app
from finflow_sb3.config import IQLSettings, RunSettings, Settings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.seeding import policy_kwargs_for, seed
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.offline.formats import read_plain
from finflow_sb3.offline.spaces import Spaces
from finflow_sb3.pipeline import evaluate, finetune, pretrain, train
from finflow_sb3.pretrain.artefact import Artefact, read_artefact, write_artefact
from finflow_sb3.pretrain.iql import ExpertIQL, make_iql
from finflow_sb3.pretrain.plain import hold_out, load_plain_policy
from finflow_sb3.results import Watch
from finflow_sb3.resuming import continue_training, resume_pretraining
from finflow_sb3.runs.folder import RunFolder

EXACT = {"rtol": 0.0, "atol": 1e-5}
NETS: dict[str, Any] = {"critic_hidden": [8, 6], "n_critics": 2, "n_quantiles": 5}


def settings_in(folder: Path, **iql: Any) -> Settings:
    own = {"epochs": 3, "steps_per_epoch": 4, "batch_size": 16, "policy_kwargs": NETS, **iql}
    return Settings(
        iql=IQLSettings(**own),
        run=RunSettings(log_dir=str(folder / "logs"), tensorboard=False, device="cpu"),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same episodes of Pendulum as Minari and d3rlpy write them."""
    folder = tmp_path_factory.mktemp("data")
    write_minari_data(folder / "pendulum-v0", pendulum_episodes())
    write_d3rlpy_file(folder / "pendulum.h5", pendulum_episodes())
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return pretrain(settings_in(folder), data / "pendulum-v0").run


# ------------------------------------------------------------------ a run


@pytest.mark.parametrize("name", ["pendulum-v0", "pendulum.h5"])
def test_a_run(data: Path, tmp_path: Path, name: str) -> None:
    said: list[str] = []
    watch = Watch()
    watch.remark = said.append  # type: ignore[method-assign]
    bounds = (-2.0, 2.0) if name.endswith("h5") else None
    done = pretrain(settings_in(tmp_path), data / name, watch=watch, action_range=bounds)
    assert done.run.name == f"{Path(name).stem}_1" and done.run.parent.name == "iql"
    assert (done.steps, done.finished, done.best_epoch, done.untrained) == (12, True, 3, {})
    assert set(done.validation) == {"v_loss", "q_loss", "policy_loss"}
    artefact = read_artefact(done.run / "best")
    assert artefact.layout is None and artefact.scaler is None
    assert artefact.spaces == read_plain(data / name, bounds).spaces
    head = json.loads((done.run / "best" / "artefact.json").read_text())
    assert head["layout"] is None and head["spaces"]["low"] == [-2.0]
    assert artefact.facts == {"epoch": 3, "validation": done.validation}
    lines = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["validation_q_loss"] == done.validation["q_loss"]
    assert "without a market" in said[0]
    assert ("12 steps" in said[-1]) == name.endswith("h5")


def test_it_learns(data: Path, tmp_path: Path) -> None:
    """Held-out losses fall; nothing pulls the policy to zero."""
    quick = settings_in(tmp_path, steps_per_epoch=60, actor_lr=3e-3, critic_lr=3e-3)
    epochs: list[Any] = []
    watch = Watch()
    watch.epoch = epochs.append  # type: ignore[method-assign]
    done = pretrain(quick.replace(iql={"prior_coef": 40.0}), data / "pendulum-v0", watch=watch)
    assert epochs[-1].validation["q_loss"] < 0.8 * epochs[0].validation["q_loss"]
    assert "prior_coef: 0.0" in (done.run / "config.yml").read_text()


def test_fitted_q_evaluation_chooses(data: Path, tmp_path: Path) -> None:
    """Among the last `fqe_epochs` epochs the one of the highest value is kept."""
    settings = settings_in(tmp_path, fqe_epochs=2, fqe_steps=5, epochs=4)
    done = pretrain(settings, data / "pendulum-v0")
    assert done.fqe is not None and {each.epoch for each in done.fqe.epochs} == {3, 4}
    assert done.best_epoch == max(done.fqe.epochs, key=lambda each: each.value).epoch
    assert read_artefact(done.run / "best").facts["epoch"] == done.best_epoch
    stopped = pretrain(settings, data / "pendulum-v0", stop_at=14)
    assert resume_pretraining(stopped.run).fqe == done.fqe


def test_a_tenth_of_the_episodes_is_held_out(data: Path) -> None:
    dataset = read_plain(data / "pendulum-v0")
    learned, held = hold_out(dataset, seed=0)
    assert (len(learned), len(held)) == (330, 30)
    assert not set(learned.index.tolist()) & set(held.index.tolist())
    assert len(set(dataset.episode[held.index].tolist())) == 1
    np.testing.assert_array_equal(learned.starts, np.arange(11) * 30)
    assert torch.equal(hold_out(dataset, seed=0)[1].index, held.index)
    seen = {int(dataset.episode[hold_out(dataset, s)[1].index[0]]) for s in range(20)}
    assert len(seen) > 5


def test_losses_without_a_step(data: Path) -> None:
    """What an update would report, and not a parameter moves."""
    dataset = read_plain(data / "pendulum-v0")
    algo = make_iql(IQLSettings(policy_kwargs=NETS), dataset.spaces)
    batch = dataset.gather(torch.arange(0, 300, 7))
    before = {k: v.clone() for k, v in algo.weights().items()}
    found = algo.losses_on(batch)
    assert all(torch.equal(before[k], v) for k, v in algo.weights().items())
    assert found == algo.losses_on(batch)
    made = algo.update_on(batch)
    for name in ("v_loss", "q_loss"):  # the policy's loss comes after the step of V
        assert found[name] == pytest.approx(made[name], rel=1e-6)
    assert algo.losses_on(batch) != found
    assert algo.modules.policy.training


def test_stopped_and_resumed_is_as_never_stopped(data: Path, tmp_path: Path, run: Path) -> None:
    stopped = pretrain(settings_in(tmp_path), data / "pendulum-v0", stop_at=6)
    assert (stopped.finished, stopped.steps) == (False, 6)
    done = resume_pretraining(stopped.run)
    assert done.finished and done.best_epoch == 3
    for name in ("metrics.jsonl", "best/weights.safetensors", "best/artefact.json"):
        assert (stopped.run / name).read_bytes() == (run / name).read_bytes(), name


def test_resuming_refuses_what_changed(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "pendulum.h5"
    shutil.copy(data / "pendulum.h5", own)
    done = pretrain(settings_in(tmp_path), own, stop_at=5, action_range=(-2.0, 2.0))
    with pytest.raises(ConfigError, match="leave out --prices"):
        resume_pretraining(done.run, prices="us20")
    settings = settings_in(tmp_path).replace(env_kwargs={"episode_length": 99})
    with pytest.raises(ConfigError, match=r"env_kwargs\.episode_length is 99; leave it out"):
        resume_pretraining(done.run, settings=settings)
    with pytest.raises(ArtefactError, match="go on with finflow pretrain --resume"):
        continue_training(done.run)
    write_d3rlpy_file(own, pendulum_episodes()[::-1])
    with pytest.raises(ArtefactError, match="was trained on other data"):
        resume_pretraining(done.run)
    own.unlink()
    with pytest.raises(ArtefactError, match="no such dataset"):
        resume_pretraining(done.run)


# ------------------------------------------------------------------ acting


def test_it_acts_as_the_seeded_model(run: Path) -> None:
    policy = load_plain_policy(run)
    artefact = read_artefact(run / "best")
    model = CQSAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs_for(artefact))
    seed(model, artefact)
    env = gymnasium.make("Pendulum-v1")
    states = np.stack([env.observation_space.sample() for _ in range(200)])
    mine, state = policy.predict(states, deterministic=True)
    theirs, _ = model.predict(states, deterministic=True)
    assert state is None and mine.shape == (200, 1)
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
    one, _ = policy.predict(states[7], deterministic=True)
    np.testing.assert_allclose(one, mine[7], atol=1e-6)
    torch.manual_seed(0)
    noisy, _ = policy.predict(states)
    assert np.abs(noisy - mine).mean() > 0.05 and np.abs(noisy).max() <= 2.0
    mean, _ = evaluate_policy(policy, DummyVecEnv([lambda: env]), n_eval_episodes=1)  # type: ignore[arg-type]
    assert -2500.0 < mean < 0.0
    with pytest.raises(ArtefactError, match=r"have shape \(3,\); these have \(200, 2\)"):
        policy.predict(states[:, :2])


def test_policies_of_another_kind_are_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ArtefactError, match="no such file"):
        load_plain_policy(tmp_path)
    copy = tmp_path / "copy"
    artefact = read_artefact(run / "best")
    wide = dataclasses.replace(artefact.sizes, critic_hidden=(9, 9))
    write_artefact(dataclasses.replace(artefact, sizes=wide), copy)
    with pytest.raises(ArtefactError, match="weights do not fit") as caught:
        load_plain_policy(copy)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ seeding


FORMS = [
    {},
    {"layer_norm": True, "dropout": 0.1},
    {"critic_hidden": [7], "n_critics": 3, "n_quantiles": 4},
]


@dataclasses.dataclass(frozen=True)
class Seeded:
    algo: ExpertIQL
    artefact: Artefact
    model: CQSAC
    report: Any
    states: torch.Tensor
    actions: torch.Tensor


@pytest.fixture(scope="module", params=FORMS, ids=["plain", "regularised", "other sizes"])
def seeded(request: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Seeded:
    """IQL after real updates, through the disk, into a fresh CQSAC of Pendulum."""
    dataset = read_plain(data / "pendulum-v0")
    kwargs = {**NETS, **request.param}
    settings = IQLSettings(actor_lr=3e-3, critic_lr=3e-3, tau=0.1, policy_kwargs=kwargs)
    torch.manual_seed(0)
    algo = make_iql(settings, dataset.spaces)
    for _ in range(40):
        algo.update_on(dataset.gather(torch.randint(len(dataset), (64,))))
    algo.modules.set_eval()
    folder = tmp_path_factory.mktemp("artefact")
    write_artefact(
        Artefact("iql", algo.weights(), algo.sizes, 5.0, None, None, {}, dataset.spaces), folder
    )
    artefact = read_artefact(folder)
    torch.manual_seed(99)  # anything but the seed that the artefact was made with
    model = CQSAC(
        "MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs_for(artefact), buffer_size=100
    )
    report = seed(model, artefact)
    model.policy.set_training_mode(False)
    states = torch.randn(1000, 3, generator=torch.Generator().manual_seed(7))
    actions = torch.rand(1000, 1, generator=torch.Generator().manual_seed(8)) * 2.0 - 1.0
    return Seeded(algo, artefact, model, report, states, actions)


@torch.no_grad()
def test_mean_and_sigma(seeded: Seeded) -> None:
    mine = seeded.model.policy.distribution(seeded.states)
    theirs: Any = seeded.algo.modules.policy(seeded.states)
    torch.testing.assert_close(mine.mean, theirs.mu, **EXACT)
    torch.testing.assert_close(mine.log_std, theirs.logstd, **EXACT)
    assert mine.log_std.std() > 1e-3 and mine.mean.std() > 1e-3


@pytest.mark.parametrize("which", ["critic", "critic_target"])
@torch.no_grad()
def test_every_quantile_of_every_critic(seeded: Seeded, which: str) -> None:
    modules = seeded.algo.modules
    ensemble = modules.q_funcs if which == "critic" else modules.targ_q_funcs
    mine = getattr(seeded.model, which)(seeded.states, seeded.actions)
    for c, q_function in enumerate(ensemble):
        theirs = q_function(seeded.states, seeded.actions).quantiles
        torch.testing.assert_close(mine[:, c], theirs, **EXACT)
    assert mine.shape == (1000, seeded.artefact.sizes.n_critics, seeded.artefact.sizes.n_quantiles)


def test_the_report_counts(seeded: Seeded) -> None:
    count = sum(p.numel() for p in seeded.model.policy.actor.parameters())
    assert seeded.report.copied["policy"] == count
    assert set(seeded.report.copied) == {"policy", "critics", "target critics"}


def test_a_seeded_model_learns_on_with_the_offline_data(data: Path, run: Path) -> None:
    artefact = read_artefact(run / "best")
    model = CQSAC(
        "MlpPolicy",
        "Pendulum-v1",
        policy_kwargs=policy_kwargs_for(artefact),
        learning_starts=10,
        batch_size=16,
        buffer_size=200,
        offline_fraction=0.5,
        cql_alpha=1.0,
    )
    seed(model, artefact)
    model.set_offline_data(read_plain(data / "pendulum-v0"))
    before = {k: v.clone() for k, v in model.actor.state_dict().items()}
    model.learn(40)
    after = model.actor.state_dict()
    assert all(torch.isfinite(v).all() for v in after.values())
    assert any(not torch.equal(before[k], v) for k, v in after.items())


class Other(gymnasium.Env[Any, Any]):
    """An environment with these spaces."""

    def __init__(self, size: int, high: float):
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = Box(-high, high, (1,), np.float32)


@pytest.mark.parametrize(
    ("policy", "env", "message"),
    [
        ("MultiExpertPolicy", "Pendulum-v1", "it seeds an MlpPolicy"),
        ("MlpPolicy", Other(4, 2.0), r"have shape \(4,\); the artefact's \(3,\)"),
        ("MlpPolicy", Other(3, 1.0), r"the artefact's from \[-2\.0\] to \[2\.0\]"),
    ],
)
def test_models_that_do_not_fit(run: Path, policy: str, env: Any, message: str) -> None:
    artefact = read_artefact(run / "best")
    kwargs = policy_kwargs_for(artefact) if policy == "MlpPolicy" else {}
    model = CQSAC(policy, env, policy_kwargs=kwargs, buffer_size=10)
    with pytest.raises(ArtefactError, match=message) as caught:
        seed(model, artefact)
    assert "\n" not in str(caught.value)


def test_new_normalisation_is_refused(run: Path) -> None:
    artefact = read_artefact(run / "best")
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))
    model = CQSAC("MlpPolicy", env, policy_kwargs=policy_kwargs_for(artefact), buffer_size=10)
    with pytest.raises(ArtefactError, match="normalize"):
        seed(model, artefact)


# ------------------------------------------------------------------ what needs a market


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"market": {"prices": "x.csv"}}, r"market\.prices is 'x\.csv'"),
        ({"env_kwargs": {"fee": 0.05}}, r"env_kwargs\.fee is 0\.05"),
        ({"collect": {"episodes": 3}}, r"collect\.episodes is 3"),
        ({"iql": {"policy_kwargs": {"expert_hidden": 4}}}, "policy_kwargs has expert_hidden"),
    ],
)
def test_settings_of_markets_are_refused_by_name(
    data: Path, tmp_path: Path, changes: Any, name: str
) -> None:
    with pytest.raises(ConfigError, match=name):
        pretrain(settings_in(tmp_path).replace(**changes), data / "pendulum-v0")
    assert not (tmp_path / "logs").exists()


def test_other_verbs_refuse_it_by_name(data: Path, tmp_path: Path, run: Path) -> None:
    settings = settings_in(tmp_path)
    with pytest.raises(ConfigError, match="no market to fine-tune and evaluate in"):
        train(settings, dataset=data / "pendulum-v0")
    for verb in (lambda: finetune(settings, run), lambda: evaluate(run)):
        with pytest.raises(ArtefactError, match="was pretrained without a market"):
            verb()
    with pytest.raises(ConfigError, match="action_range"):
        pretrain(settings, action_range=(-1.0, 1.0))


def test_one_episode_is_too_few(tmp_path: Path) -> None:
    path = write_d3rlpy_file(tmp_path / "one.h5", random_episodes(True))
    with pytest.raises(ArtefactError, match="holds one episode"):
        pretrain(settings_in(tmp_path), path)
    assert not list((tmp_path / "logs").rglob("*_1"))


def cli(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["pretrain", *arguments])


def test_the_command(data: Path, tmp_path: Path) -> None:
    small = ["--epochs", "1", "--steps-per-epoch", "2", "--batch-size", "8"]
    small += ["--log-dir", str(tmp_path / "logs")]
    source = str(data / "pendulum.h5")
    done = cli("--dataset", source, "--action-range", "-2", "2", *small, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["dataset"] == source and found["best_epoch"] == 1
    shown = cli("--dataset", str(data / "pendulum-v0"), *small)
    assert shown.exit_code == 0, shown.output
    assert "held-out episodes" in shown.stdout and "policy loss" in shown.stdout
    assert "Sharpe" not in shown.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prices", "us20.csv"], "market.prices is 'us20.csv'"),
        (["--preset", "volatile"], "env_kwargs."),
        (["--env", "finflow/Portfolio-v0"], "env is 'finflow/Portfolio-v0'"),
        (["--action-range", "-1", "1"], "has its own bounds"),
    ],
)
def test_flags_that_need_a_market(data: Path, flags: list[str], message: str) -> None:
    done = cli("--dataset", str(data / "pendulum-v0"), *flags)
    assert done.exit_code == 1
    assert message in done.output and "Traceback" not in done.output


def test_sizes_that_the_weights_do_not_have_take_no_memory(run: Path, tmp_path: Path) -> None:
    artefact = read_artefact(run / "best")
    huge = Spaces((10**13,), (1,), (-2.0,), (2.0,))
    write_artefact(dataclasses.replace(artefact, spaces=huge), tmp_path / "huge")
    with pytest.raises(ArtefactError, match="weights do not fit their description"):
        load_plain_policy(tmp_path / "huge")


@pytest.mark.parametrize("name", ["prior_coef", "balance_coef"])
def test_what_needs_gates_is_refused(data: Path, run: Path, tmp_path: Path, name: str) -> None:
    """At the start, and where a run goes on."""
    with pytest.raises(ConfigError, match=f"iql.{name} is 7; leave it out"):
        pretrain(settings_in(tmp_path, **{name: 7.0}), data / "pendulum-v0")
    settings = RunFolder.open(run).settings().replace(iql={name: 7.0})
    with pytest.raises(ConfigError, match=f"iql.{name} is 7; leave it out"):
        resume_pretraining(run, settings=settings)


def test_one_episode_leaves_no_trace(data: Path, tmp_path: Path) -> None:
    write_d3rlpy_file(tmp_path / "one.h5", pendulum_episodes()[:1])
    with pytest.raises(ArtefactError, match="holds one episode"):
        pretrain(settings_in(tmp_path), tmp_path / "one.h5", action_range=(-2.0, 2.0))
    assert not (tmp_path / "logs").exists()


def test_watching_shows_the_losses_on_what_was_held_out(run: Path) -> None:
    result = CliRunner().invoke(app, ["watch", "--once", str(run)])
    assert result.exit_code == 0, result.output
    assert "value loss" in result.output
    assert "Sharpe" not in result.output and "!!" not in result.output


def test_a_variable_that_needs_a_market_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINFLOW_PRICES", "prices.csv")
    settings = settings_in(tmp_path).replace(market={"prices": "prices.csv"})
    with pytest.raises(ConfigError, match=r"'prices\.csv'; unset FINFLOW_PRICES"):
        pretrain(settings, data / "pendulum-v0")
