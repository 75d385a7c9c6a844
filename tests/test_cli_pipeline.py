from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pipeline_fixtures import runs_in, write_prices, write_tiny
from rich.console import Console
from typer.testing import CliRunner

from finflow_sb3 import pipeline
from finflow_sb3.cli.app import app
from finflow_sb3.cli.console import console, out, set_quiet
from finflow_sb3.cli.options import Shared
from finflow_sb3.cli.runs import settings_from
from finflow_sb3.config_files import read_config
from finflow_sb3.pipeline import Finetuned, Trained

MAIN = [sys.executable, "-c", "from finflow_sb3.cli.app import main; main()"]


@pytest.fixture(autouse=True)
def _loud() -> Iterator[None]:
    yield
    set_quiet(False)


def run(*args: Any, width: int = 200, **env: str) -> Any:
    # A console that was made while COLUMNS was set (by a test runner, say) does not look again.
    before = {one: one._width for one in (console, out)}
    console.width = out.width = width
    try:
        runner = CliRunner(env={"COLUMNS": str(width), "NO_COLOR": "1", **env})
        return runner.invoke(app, [str(arg) for arg in args])
    finally:
        for one, own in before.items():
            one._width = own


def fine(*args: Any, **env: Any) -> Any:
    """The result of a command that has to end well."""
    result = run(*args, **env)
    assert result.exit_code == 0, f"{result.stderr}{result.exception!r}"
    return result


class Work:
    """A folder with prices, settings, and a run of each kind; runs of the tests go elsewhere."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.prices = write_prices(folder / "prices.csv")
        self.config = write_tiny(folder / "tiny.yml", self.prices, folder / "logs")
        self.pretrain = fine("pretrain", "-c", self.config, "--json", "--iql-temperature", "0.5")
        self.pretrained = Path(json.loads(self.pretrain.stdout)["run"])
        self.finetune = fine("finetune", "--pretrained", self.pretrained, "--json")
        self.finetuned = Path(json.loads(self.finetune.stdout)["run"])


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("work"))


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


# Collecting


def test_collect_shows_what_each_rule_did(work: Work, tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    flags = ["--episodes", "6", "--behaviours", "anchor, contrarian", "--n-envs", "4"]
    result = fine("collect", "-c", work.config, "--save-path", path, "--noise", "0", *flags)
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert rows[0][:6] == ["behaviour", "episodes", "transitions", "mean", "reward", "a"]
    assert [row[:3] for row in rows[2:4]] == [["anchor", "3", "120"], ["contrarian", "3", "120"]]
    assert f"240 transitions in 6 episodes: {path}" in result.stdout
    assert f"finflow pretrain --dataset {path} --prices {work.prices}" in result.stdout
    assert path.is_file()


def test_collect_as_json(work: Work, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    found = json.loads(fine("collect", "-c", work.config, "--save-path", path, "--json").stdout)
    assert found["path"] == str(path)
    assert (found["episodes"], found["transitions"]) == (8, 320)
    assert set(found["behaviours"]) >= {"anchor", "buy_and_hold"}


# Pretraining


def test_pretrain_takes_its_flags(work: Work) -> None:
    settings = read_config(work.pretrained / "config.yml")
    assert settings.iql.weight_temp == 2.0
    assert settings.market.prices == str(work.prices)


@pytest.mark.parametrize(
    ("width", "gates"),
    [
        (80, "vol cor mom def gro"),
        (120, "volatility  correlation  momentum  defensive  growth"),
    ],
)
def test_pretrain_prints_its_epochs_and_what_comes_next(
    work: Work, logs: Path, width: int, gates: str
) -> None:
    flags = ["--epochs", "3", "--steps-per-epoch", "1", "--log-dir", logs]
    result = fine("pretrain", "-c", work.config, *flags, width=width)
    (made,) = runs_in(logs)
    heading, *epochs = result.stderr.splitlines()[1:]
    figures = re.fullmatch(
        r"epoch +V loss +Q loss +policy +Sharpe +excess +turnover +(.+)", heading
    )
    assert figures is not None
    assert figures[1] == gates
    assert [line.split()[0] for line in epochs] == ["1", "2", "3"]
    assert {len(line) for line in epochs} == {len(heading)}
    assert len(heading) <= width
    lines = [line.split() for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    shares = [int(share.rstrip("%")) for share in epochs[0].split()[-5:]]
    assert 98 <= sum(shares) <= 102
    assert str(made) in result.stdout
    assert f"finflow finetune --pretrained {made}" in result.stdout
    assert "untrained" in result.stdout


def test_the_figures_of_the_panel_are_those_of_the_run(work: Work, logs: Path) -> None:
    result = fine("pretrain", "-c", work.config, "--epochs", "1", "--log-dir", logs, "--quiet")
    (made,) = runs_in(logs)
    line = json.loads((made / "metrics.jsonl").read_text())
    row = next(row for row in result.stdout.splitlines() if "Sharpe" in row)
    assert f"{line['validation_sharpe']:.2f}".replace("-", "−") == row.split()[2]
    assert result.stderr == ""


def test_nothing_but_the_result_is_printed_under_quiet_and_json(work: Work) -> None:
    """In a process of its own, where the libraries are imported anew."""
    args = [*MAIN, "pretrain", "-c", str(work.config), "--quiet", "--json"]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert json.loads(done.stdout)["best_epoch"] in (1, 2)


# Fine-tuning


def test_finetune_takes_the_settings_of_the_pretrained_run(work: Work) -> None:
    before = read_config(work.pretrained / "config.yml")
    after = read_config(work.finetuned / "config.yml")
    assert after == before
    found = json.loads(work.finetune.stdout)
    assert (found["steps"], found["finished"]) == (640, True)
    assert "Seeded exactly, in parameters: policy" in work.finetune.stderr
    assert "Starts fresh: optimisers" in work.finetune.stderr


def test_what_is_given_overrides_the_pretrained_run(work: Work, tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text("finflow/Mine-v0:\n  gamma: 0.9\n  cql_alpha: 3\n")
    shared = Shared(config=[file], preset="volatile", param=["cql_alpha:4"], seed=7)
    settings = settings_from(work.pretrained, shared, "cqsac", cqsac={"batch_size": 99})
    run_settings = read_config(work.pretrained / "config.yml")
    assert settings.env == "finflow/Mine-v0"
    assert settings.market == run_settings.market
    assert settings.iql == run_settings.iql
    assert settings.env_kwargs.lambda_cvar == 10.0  # the preset's
    assert settings.env_kwargs.episode_length == 40  # the run's
    assert settings.cqsac.alpha_init == 1.0
    assert (settings.cqsac.gamma, settings.cqsac.cql_alpha) == (0.9, 4.0)
    assert (settings.cqsac.batch_size, settings.run.seed) == (99, 7)


def test_finetune_shows_where_it_wrote_and_goes_on_to_more_steps(work: Work, logs: Path) -> None:
    flags = ["--sac-episodes", "8", "--log-dir", logs, "--checkpoint-interval", "4"]
    result = fine("finetune", "--pretrained", work.pretrained, *flags, "--max-checkpoints", "3")
    (made,) = runs_in(logs)
    settings = read_config(made / "config.yml")
    assert (settings.cqsac.n_timesteps, settings.run.checkpoint_interval) == (320, 4)
    assert settings.run.max_checkpoints == 3
    assert f"finflow evaluate {made}" in result.stdout
    longer = fine("finetune", "--resume", made, "--n-timesteps", "400", "--json")
    assert json.loads(longer.stdout)["steps"] == 400
    assert "Resuming at step 320 of 400." in longer.stderr
    again = fine("finetune", "--resume", made / "checkpoints" / "step_000000000320", "--json")
    assert json.loads(again.stdout) == json.loads(longer.stdout) | {"run": str(made.absolute())}


def interrupted(number: signal.Signals, logs: Path, *args: Any) -> tuple[Path, str, str]:
    """Run, stdout and last line of stderr of a process of its own that got a signal in training."""
    words = [*MAIN, *map(str, args), "--log-dir", str(logs)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not list(logs.glob("*/*/metrics.jsonl")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    (made,) = runs_in(logs)
    return made, stdout, stderr.splitlines()[-1]


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(work: Work, logs: Path) -> None:
    args = ["finetune", "--pretrained", work.pretrained, "--n-timesteps", "10000000"]
    args += ["-p", "cqsac.learning_starts:1000000", "--json"]
    made, stdout, last = interrupted(signal.SIGINT, logs, *args)
    found = json.loads(stdout)
    assert found["finished"] is False
    steps = f"{found['steps']:,}"
    assert last == f"stopped at step {steps}; go on with: finflow finetune --resume {made}"
    target = str(found["steps"] + 16)
    assert fine("finetune", "--resume", made, "--n-timesteps", target).exit_code == 0


def test_sigterm_in_pretraining_saves_a_checkpoint_and_says_how_to_go_on(
    work: Work, logs: Path
) -> None:
    """In the middle of an epoch; that it goes on exactly is in `test_resume_pretraining`."""
    args = ["pretrain", "-c", work.config, "--epochs", "3", "--steps-per-epoch", "2000"]
    made, _, last = interrupted(signal.SIGTERM, logs, *args, "-p", "iql.batch_size:256")
    how = f"go on with: finflow pretrain --resume {made}"
    found = re.fullmatch(rf"stopped at step ([\d,]+); {re.escape(how)}", last)
    assert found, last
    step = int(found[1].replace(",", ""))
    assert 0 < step < 6000
    assert max(path.name for path in (made / "checkpoints").iterdir() if path.is_dir()) == (
        f"step_{step:012d}"
    )
    assert "is a pretraining run" in run("finetune", "--resume", made).stderr


def test_a_second_ctrl_c_ends_at_once(
    work: Work, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_offline", interrupted)
    result = run("pretrain", "-c", work.config, "--log-dir", logs)
    assert result.exit_code == 130
    assert (result.stderr.splitlines()[-1], runs_in(logs)) == ("error: interrupted", [])


# Evaluating


NUMBER = r"(?:−?[\d.]+(?: [%×])?|–)"


def test_evaluate_takes_other_settings_of_the_evaluation(work: Work, tmp_path: Path) -> None:
    """From flags and files; what the policy was trained with stays."""
    file = tmp_path / "sceptic.yml"
    days = "[2001-12-03, 2002-03-01]"
    file.write_text(f"default:\n  evaluation:\n    level: 90\n    stress: {{mine: {days}}}\n")
    asked = ["evaluate", work.finetuned, "-c", file, "-p", "evaluation.index:A", "--json"]
    found = json.loads(fine(*asked).stdout)
    assert found["measures"]["index"]["lag_0"]["turnover"] == 0.0
    report = json.loads((Path(found["report"]).parent / "metrics.json").read_text())
    assert report["analysis"]["level"] == 90
    assert [p["name"] for p in report["analysis"]["stress"]["periods"]] in (["mine"], [])
    refused = run("evaluate", work.finetuned, "-p", "fee:0.002")
    assert refused.exit_code == 1
    assert "env_kwargs.fee: a run is evaluated with what it was trained with" in refused.stderr


@pytest.mark.parametrize("width", [80, 120])
def test_evaluate_shows_every_curve(work: Work, width: int) -> None:
    result = fine("evaluate", work.finetuned, width=width)
    lines = result.stdout.splitlines()
    assert max(map(len, lines[:-1])) <= width  # a path is never wrapped
    rows = [
        line
        for line in lines
        if re.search(rf"(?:\s+{NUMBER}){{3,}}\s*$", line.replace("\u00a0", " "))
    ]
    names = ["CQSAC", "Equal weight", "Buy and hold", "Inverse volatility", "Minimum variance"]
    names += ["Maximum Sharpe", "Risk budgeting", "Maximum diversification", "HRP", "HERC"]
    names += ["Minimum CVaR", "Nested clusters", "Anchors' average"]
    names += [f"Anchor: {n}" for n in ("volatility", "correlation", "momentum")]
    names += ["Anchor: defensive", "Anchor: growth"]
    tables = 2 if width == 80 else 1
    assert [row.strip().split("  ")[0] for row in rows] == names * tables
    report = work.finetuned / "report" / "index.html"
    assert lines[-1] == f"Report: {report}"
    content = json.loads((report.parent / "metrics.json").read_text())
    said = " ".join(result.stdout.split())
    assert " ".join(content["verdict"]["sentence"].split()) in said
    policy = next(c for c in content["curves"] if c["name"] == "cqsac" and not c["execution_lag"])
    lagged = next(c for c in content["curves"] if c["name"] == "cqsac" and c["execution_lag"])
    cells = rows[0].replace("\u00a0", "").split()
    assert cells[1] == f"{policy['measures']['annual_return']:.1%}".replace("-", "−")
    assert cells[3] == f"{policy['measures']['sharpe']:.2f}".replace("-", "−")
    assert cells[4] == f"{lagged['measures']['sharpe']:.2f}".replace("-", "−")


# All in one go


@pytest.fixture
def trains(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `pipeline.train` was called with; nothing is trained."""
    calls: list[tuple[Any, ...]] = []

    def train(settings: Any, mode: str, dataset: Any, watch: Any, algo: str, **_: Any) -> Trained:
        calls.append((settings, mode, dataset, algo))
        return Trained(None, None, None)

    monkeypatch.setattr(pipeline, "train", train)
    return calls


def test_train_takes_its_flags(work: Work, trains: list[Any]) -> None:
    flags = ["--iql-epochs", "7", "--sac-episodes", "9", "--batch-size", "33"]
    fine("train", "-c", work.config, "--mode", "offline", "--dataset", "d.h5", *flags)
    ((settings, *others),) = trains
    assert others == ["offline", Path("d.h5"), "iql"]
    assert settings.iql.epochs == 7
    assert settings.cqsac.n_timesteps == 9 * 40
    assert settings.iql.batch_size == settings.cqsac.batch_size == 33


@pytest.mark.parametrize(
    ("mode", "iql", "cqsac"), [("offline", 0.5, 0.99), ("online", 0.99, 0.5), ("full", None, None)]
)
def test_a_bare_key_belongs_to_the_phase_that_runs(
    trains: list[Any], mode: str, iql: float | None, cqsac: float
) -> None:
    result = run("train", "--mode", mode, "-p", "gamma:0.5")
    if iql is None:
        assert "write iql.gamma or td3bc.gamma or cqsac.gamma" in result.stderr
    else:
        assert (trains[0][0].iql.gamma, trains[0][0].cqsac.gamma) == (iql, cqsac)


def test_a_train_that_was_stopped_goes_on_with_train(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any, **__: Any) -> Trained:
        return Trained(None, Finetuned(Path("no such run"), 5, False, None, {}, None), None)

    monkeypatch.setattr(pipeline, "train", train)
    result = run("train")
    assert result.exit_code == 130
    how = "go on with: finflow train --resume 'no such run'"
    assert result.stderr.splitlines()[-1] == f"stopped at step 5; {how}"


def test_demo_says_what_it_does_and_what_to_try_next(work: Work, logs: Path) -> None:
    result = fine("demo", "-c", work.config, "--log-dir", logs)
    assert result.stderr.splitlines()[0] == (
        f"Demo on {work.prices}: 8 episodes of known rules, 2 epochs of IQL, "
        "640 steps of CQSAC, a backtest."
    )
    cqsac, iql = runs_in(logs)
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert f"Report: {cqsac / 'report' / 'index.html'}" in lines
    assert lines[lines.index("What to try next:") + 1 :] == [
        "Train at full length:",
        f"finflow train --mode full --prices {work.prices}",
        "Fine-tune longer from this start:",
        f"finflow finetune --pretrained {iql} --n-timesteps 252000",
        "Every figure as JSON:",
        f"finflow evaluate {cqsac} --json",
    ]


def test_train_goes_on_from_a_pretraining_run(work: Work) -> None:
    before = runs_in(work.folder / "logs")
    found = json.loads(fine("train", "--resume", work.pretrained, "--json").stdout)
    (made,) = set(runs_in(work.folder / "logs")) - set(before)
    assert found["finetuned"]["run"] == found["evaluated"]["run"] == str(made)
    assert found["pretrained"] is None
    assert found["evaluated"]["policy"] == "cqsac"
    assert set(found["evaluated"]["measures"]["equal_weight"]) == {"lag_0", "lag_1"}
    resumed = json.loads(fine("train", "--resume", made, "--json").stdout)
    assert resumed["evaluated"] == found["evaluated"]


# The bar


def shown(monkeypatch: pytest.MonkeyPatch, run_folder: Path, width: int, terminal: bool) -> str:
    """What fine-tuning of 252,000 steps shows on a console."""
    from finflow_sb3.cli import watching

    monkeypatch.setenv("TERM", "xterm")
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(watching, "console", console)
    with watching.watching() as watch:
        watch.started(run_folder)
        watch.progress("anchors", 1, 2)
        for step in (0, 252_000):
            watch.progress("fine-tuning", step, 252_000)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_shows_the_latest_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    lines = [
        {"step": 0, "kind": "train", "episode": 900, "return": -12.341},
        {"step": 0, "kind": "validation", "sharpe": 0.944},
        {"step": 1, "kind": "train", "episode": 1000},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 2, "kind": "tr')
    monkeypatch.chdir(tmp_path)
    printed = shown(monkeypatch, Path(), width, terminal=True)
    rows = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", printed).replace("\r", "\n").splitlines()
    bars = [row for row in rows if row.startswith("fine-tuning")]
    assert "252,000/252,000 ep. 1,000, return -12.34, Sharpe 0.94" in bars[-1]
    assert max(map(len, rows)) <= width
    assert all("…" not in row for row in rows)
    assert any(re.match(r"anchors .* 1/2 ", row) for row in rows)


def test_there_is_no_bar_where_nobody_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(monkeypatch, tmp_path, 80, terminal=False) == f"Run: {tmp_path}\n"


# Errors: one line, exit code 1, no run


def refused(result: Any, logs: Path, *parts: str) -> None:
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in last
    assert runs_in(logs) == []


def spoilt(work: Work, folder: Path, how: str) -> Path:
    """A copy of the prices with one thing wrong."""
    path = folder / f"{how}.csv"
    table = pd.read_csv(work.prices, dtype=str)
    if how == "zero":
        table.loc[10, "C"] = "0"
    elif how == "text":
        table.loc[10, "C"] = "n.a.x"
    elif how == "twice":
        table.loc[11, "date"] = table.loc[10, "date"]
    elif how == "short":
        table = table.head(100)
    if how != "missing":
        table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("command", ["collect", "pretrain", "finetune", "train"])
@pytest.mark.parametrize(
    ("how", "parts"),
    [
        ("missing", ["missing.csv", "no such file"]),
        ("zero", ["zero.csv", "C", "2000-01-17"]),
        ("text", ["text.csv", "C", "2000-01-17", "n.a.x"]),
        ("twice", ["twice.csv", "2000-01-17"]),
        ("short", ["100 rows", "longest window"]),
    ],
)
def test_bad_prices(
    work: Work, tmp_path: Path, logs: Path, command: str, how: str, parts: list[str]
) -> None:
    prices = spoilt(work, tmp_path, how)
    args = ["-c", work.config, "--prices", prices, "--log-dir", logs, "--quiet"]
    result = run(command, *args)
    refused(result, logs, *parts)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["pretrain", "-p", "train_end:1950-01-01"], ["train_end: 1950-01-01", "outside"]),
        (["pretrain", "-p", "train_end:soon"], ["train_end", "'soon' is not a date"]),
        (["pretrain", "-p", "expectil:0.7"], ["'expectil'", "did you mean 'expectile'?"]),
        (["pretrain", "--device", "gpu"], ["device", "'gpu'"]),
        (["pretrain", "--iql-temperature", "2", "--weight-temp", "3"], ["give one of the two"]),
        (["pretrain", "--iql-temperature", "0"], ["--iql-temperature: 0.0", "above 0"]),
        (["pretrain", "--dataset", "none.h5"], ["none.h5", "finflow collect"]),
        (["pretrain", "-p", "iql.policy_kwargs:{gate_hiden: 4}"], ["gate_hiden", "'gate_hidden'?"]),
        (["finetune", "--n-timesteps", "1", "--sac-episodes", "1"], ["give one of the two"]),
        (["finetune", "--pretrained", "none"], ["none: no such run"]),
        (["finetune", "--resume", "none", "-p", "gamma:1"], ["leave out --log-dir"]),
        (["collect", "--save-path", "data.csv"], ["data.csv", ".h5 or .npz"]),
        (["collect", "--behaviours", "anchor,contrary"], ["'contrary'", "contrarian"]),
        (["collect", "--episodes", "0"], ["--episodes", "0 is out of range"]),
    ],
)
def test_bad_settings(work: Work, logs: Path, args: list[str], parts: list[str]) -> None:
    refused(run(*args, "-c", work.config, "--log-dir", logs), logs, *parts)


def test_an_unknown_setting_in_a_file(work: Work, tmp_path: Path, logs: Path) -> None:
    file = tmp_path / "iql.yml"
    file.write_text("default:\n  weight_tmp: 3\n")
    result = run("pretrain", "-c", work.config, "-c", file, "--log-dir", logs)
    refused(result, logs, str(file), "'weight_tmp'", "did you mean 'weight_temp'?")


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["finetune", "--resume", "RUN"], "no such run"),
        (["train", "--resume", "RUN"], "no such run"),
        (["evaluate", "RUN"], "no such run"),
        (["finetune", "--pretrained", "EMPTY"], "no pretrained artefact in it"),
        (["finetune", "--resume", "EMPTY"], "no config.yml in it"),
        (["train", "--resume", "EMPTY"], "no config.yml in it"),
        (["evaluate", "EMPTY"], "no config.yml in it"),
        (["finetune", "--resume", "PRETRAINED"], "finflow finetune --pretrained"),
        (["finetune", "--resume", "X", "--pretrained", "Y"], "leave out --pretrained"),
        (["pretrain", "--resume", "X", "--dataset", "Y"], "leave out --dataset"),
        (["pretrain", "--resume", "FINETUNED"], "finflow finetune --resume"),
        (["pretrain", "--resume", "PRETRAINED", "--seed", "1"], "run.seed: 1 differs from 0"),
        (["finetune", "--resume", "FINETUNED", "-p", "n_envs:8"], "cqsac.n_envs: 8 differs"),
        (["finetune", "--resume", "FINETUNED", "-p", "anchor_cap:0.3"], "market.anchor_cap: 0.3"),
        (["train", "--resume", "X", "--mode", "full"], "leave out --mode"),
        (["evaluate", "PRETRAINED", "--device", "cpu"], "leave out --device"),
    ],
)
def test_runs_that_do_not_serve(
    work: Work, tmp_path: Path, logs: Path, args: list[str], part: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RUN": logs / "iql" / "x_1", "EMPTY": tmp_path / "empty"}
    places |= {"PRETRAINED": work.pretrained, "FINETUNED": work.finetuned}
    refused(run(*(places.get(arg, arg) for arg in args)), logs, part)


def test_variables_that_are_set_for_all_commands_are_no_flags(work: Work) -> None:
    result = run("evaluate", work.folder, FINFLOW_PRESET="stable", FINFLOW_ENV="finflow/Other-v0")
    assert "no config.yml in it" in result.stderr


@pytest.mark.parametrize("kind", ["dataset", "pretrained"])
def test_another_universe_is_refused_by_name(
    work: Work, tmp_path: Path, logs: Path, kind: str
) -> None:
    other = write_prices(tmp_path / "other.csv", "ABCDEX")
    if kind == "dataset":
        data = tmp_path / "data.h5"
        fine("collect", "-c", work.config, "--save-path", data)
        args: list[Any] = ["pretrain", "-c", work.config, "--dataset", data, "--log-dir", logs]
    else:
        args = ["finetune", "--pretrained", work.pretrained, "--log-dir", logs]
    refused(run(*args, "--prices", other), logs, "other assets", "without X and with F")


@pytest.mark.parametrize("command", ["finetune", "train"])
def test_a_truncated_checkpoint_is_named_and_the_one_before_goes_on(
    work: Work, tmp_path: Path, command: str
) -> None:
    copy = tmp_path / "run_1"
    shutil.copytree(work.finetuned, copy)
    file = max((copy / "checkpoints").glob("step_*")) / "policy.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    result = fine(command, "--resume", copy)
    damage = f"{file}: has {len(content) - 5} bytes instead of {len(content)}"
    assert any(line.startswith(damage) for line in result.stderr.splitlines())
    assert "trying the one before" in result.stderr
    assert file.read_bytes() == content  # trained anew, to the same end


def test_a_truncated_artefact(work: Work, tmp_path: Path, logs: Path) -> None:
    copy = tmp_path / "run"
    (copy / "best").mkdir(parents=True)
    for file in [work.pretrained / "config.yml", *(work.pretrained / "best").iterdir()]:
        target = copy / file.relative_to(work.pretrained)
        target.write_bytes(file.read_bytes()[: -9 if file.suffix == ".safetensors" else None])
    result = run("finetune", "--pretrained", copy, "--log-dir", logs)
    refused(result, logs, "weights.safetensors", "truncated")


def test_the_working_folder_stays_clean(work: Work) -> None:
    assert not (Path(os.getcwd()) / "data.csv").exists()
    assert sorted(p.name for p in work.folder.iterdir()) == ["logs", "prices.csv", "tiny.yml"]
