"""rl_zoo3's own scripts with CQSAC: registered, trained, played, optimised and drawn."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import FixedTrial
from pipeline_fixtures import write_prices

from finflow_sb3 import zoo
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.errors import ConfigError, MissingExtraError
from finflow_sb3.zoo_search import convert_cqsac_params, sample_cqsac_params

ENV = "finflow/Portfolio-v0"
NAME = "finflow-Portfolio-v0"
SMALL = ("n_envs:2", "warmup_steps:0", "learning_starts:50", "buffer_size:1000", "batch_size:16")
SAMPLED = {
    "alpha_init": 0.1,
    "cql_share": 0.5,
    "learning_rate": 1e-3,
    "actor_lr_ratio": 0.5,
    "batch_size_pow": 7,
    "one_minus_gamma": 0.01,
    "tau": 0.01,
    "n_quantiles_pow": 4,
    "net": "small",
}


def run(folder: Path, *words: str) -> str:
    """Output of a script of the zoo in a folder with prices."""
    done = subprocess.run(
        [sys.executable, "-m", "finflow_sb3.zoo", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("zoo")
    write_prices(made / "prices.csv")
    return made


def market(folder: Path) -> list[str]:
    return ["--env", ENV, "--env-kwargs", f"prices:'{folder / 'prices.csv'}'"]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """Runs of the zoo, one of them of 150 steps of CQSAC that has learned."""
    words = ["--algo", "cqsac", *market(folder), "-n", "150", "--seed", "1", "-f", "logs"]
    evaluated = ["--eval-freq", "100", "--eval-episodes", "1", "--num-threads", "1"]
    said = run(folder, "train", *words, *evaluated, "-params", *SMALL)
    assert "cql_penalty" in said and "Eval num_timesteps=100" in said
    return folder / "logs"


def test_train_leaves_the_zoos_folder(trained: Path) -> None:
    made = trained / "cqsac" / f"{NAME}_1"
    assert {f"{NAME}.zip", "best_model.zip", "evaluations.npz"} <= {p.name for p in made.iterdir()}
    settings = (made / NAME / "config.yml").read_text("utf-8")
    assert "MultiExpertPolicy" in settings and "warmup_steps" in settings


def test_enjoy_plays_what_was_trained(trained: Path) -> None:
    said = run(trained.parent, "enjoy", "--algo", "cqsac", *market(trained.parent), "-n", "300")
    assert "Episode Length 252" in said
    assert "Mean reward:" in said


def test_plot_train_draws_it(trained: Path) -> None:
    pytest.importorskip("seaborn")
    run(trained.parent, "plot_train", "-a", "cqsac", "-e", ENV, "-f", "logs", "-w", "1")


def test_optimize_finishes_its_trials(folder: Path) -> None:
    few = ["--n-trials", "2", "--n-startup-trials", "1", "--n-evaluations", "1"]
    rest = ["--eval-episodes", "1", "--no-optim-plots", "--num-threads", "1", "-f", "trials"]
    # Whether a second trial is above the median of the first is chance; none is cut short.
    rest += ["--pruner", "none"]
    words = ["--algo", "cqsac", *market(folder), "-n", "80", "-optimize", *few, *rest]
    run(folder, "train", *words, "-params", *SMALL[:4])
    (report,) = (folder / "trials" / "cqsac").glob("report_*.csv")
    with report.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["COMPLETE", "COMPLETE"]
    assert {f"params_{name}" for name in SAMPLED} <= set(rows[0])


def test_registered_beside_the_zoos_own() -> None:
    import gymnasium
    from rl_zoo3 import ALGOS
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    zoo.register()
    assert ALGOS["cqsac"] is CQSAC and "sac" in ALGOS
    assert {"cqsac", "sac"} <= set(HYPERPARAMS_SAMPLER)
    assert "cqsac" in HYPERPARAMS_CONVERTER
    assert {ENV, "finflow/US20-v0"} <= set(gymnasium.registry)


@pytest.mark.parametrize("experts", [True, False])
def test_a_trials_arguments_by_hand(experts: bool) -> None:
    """16 quantiles: α_cql is half of 8, and falls to a fifth."""
    found = sample_cqsac_params(FixedTrial(SAMPLED), 5, 2, {}, experts)
    assert found == convert_cqsac_params(SAMPLED, experts)
    assert found["cql_alpha"] == 4.0 and found["cql_alpha_final"] == pytest.approx(0.8)
    assert (found["batch_size"], found["gamma"]) == (128, 0.99)
    assert found["actor_lr"] == pytest.approx(5e-4)
    assert found["ent_coef"] == "auto_0.1"
    widths = {"expert_hidden"} if experts else {"net_arch"}
    assert {"n_quantiles", *widths} <= set(found["policy_kwargs"])


def test_the_users_options_win(tmp_path: Path) -> None:
    """They come last, and the zoo takes the last; evaluation is on the validation split."""
    words = ["--algo", "cqsac", "--env", ENV]
    ahead = zoo._options_ahead("train", zoo._given(words), tmp_path)
    assert ahead[:2] == ["--conf-file", str(tmp_path / "cqsac.yml")]
    assert ahead[-1] == "split:'validation'"
    own = ["--conf-file", "mine.yml", "--eval-env-kwargs", "split:'train'"]
    assert zoo._options_ahead("train", zoo._given([*words, *own]), tmp_path) == []
    ahead = zoo._options_ahead("enjoy", zoo._given(words), tmp_path)
    assert ahead == ["--no-render", "--folder", "logs"]


def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no script 'trian'; did you mean 'train'"):
        zoo.run("trian", [])
    with pytest.raises(ConfigError, match="no settings of her"):
        zoo._options_ahead("train", zoo._given(["--algo", "her", "--env", ENV]), tmp_path)
    monkeypatch.setattr(zoo, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "finflow-sb3\[zoo\]"'):
        zoo.run("train", [])


def test_sb3s_algorithms_have_our_settings(tmp_path: Path) -> None:
    given = zoo._given(["--algo", "tqc", "--env", ENV])
    path = zoo._write_settings(given, tmp_path)
    assert path is not None
    assert "top_quantiles_to_drop_per_net: 2" in path.read_text("utf-8")
