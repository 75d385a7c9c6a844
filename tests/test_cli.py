from __future__ import annotations

import dataclasses
import datetime
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from finflow_sb3.cli import app as app_module
from finflow_sb3.cli.app import app
from finflow_sb3.cli.console import console, print_error, print_json, set_quiet
from finflow_sb3.cli.options import Shared, shared_options, shared_settings
from finflow_sb3.config_files import plain_yaml, resolve
from finflow_sb3.doctor import Check, examine
from finflow_sb3.errors import DataError

HEAVY = ("torch", "d3rlpy", "pandas", "numpy", "matplotlib", "stable_baselines3", "gym", "scipy")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in os.environ:
        if name.startswith("FINFLOW_"):
            monkeypatch.delenv(name)
    yield
    set_quiet(False)


def run(*args: str, **env: str) -> Any:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", **env}).invoke(app, args)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `finflow doctor` raise an error."""

    def _failing(error: BaseException) -> None:
        def fail(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr("finflow_sb3.doctor.examine", fail)

    return _failing


# The frame


def test_help_is_light() -> None:
    code = (
        "import sys\n"
        "from finflow_sb3.cli.app import app\n"
        "app(['--help'], standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    for name in ("data", "config", "doctor"):
        assert name in done.stdout


def test_entry_point() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from finflow_sb3.cli.app import main; main()", "--version"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stdout.split()[0] == "finflow"


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["dcotor"], "doctor"),
        (["config", "shwo"], "show"),
        (["doctor", "--sede", "1"], "--seed"),
        (["doctor", "--seed", "one"], "--seed"),
        (["config", "diff", "a.yml"], "Missing argument"),
    ],
)
def test_usage_errors_exit_with_2_and_name_the_nearest(args: list[str], part: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert part in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("p.csv: zero\nprice"), 1, "error: p.csv: zero price\n"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "error: /x/y: Permission denied\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_are_one_line(failing: Any, error: BaseException, code: int, line: str) -> None:
    failing(error)
    result = run("doctor", "--quiet")
    assert (result.exit_code, result.stderr, result.stdout) == (code, line, "")


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (["--debug", "doctor"], {}),
        (["doctor", "--debug"], {}),
        (["doctor"], {"FINFLOW_DEBUG": "1"}),
    ],
)
def test_debug_lets_the_error_through(failing: Any, args: list[str], env: dict[str, str]) -> None:
    failing(DataError("zero price"))
    result = run(*args, **env)
    assert isinstance(result.exception, DataError)
    assert result.stderr == ""


def test_bugs_are_not_hidden(failing: Any) -> None:
    failing(ZeroDivisionError())
    assert isinstance(run("doctor").exception, ZeroDivisionError)


def test_traceback_of_the_process_only_with_debug() -> None:
    code = "from finflow_sb3.cli.app import main; main()"
    command = [sys.executable, "-c", code, "config", "show", "-c", "no.yml"]
    plain = subprocess.run(command, capture_output=True, text=True)
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr == "error: no.yml: no such file; check the path\n"
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True)
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


# Shared options


def settings_of(*args: str, **env: str) -> dict[str, Any]:
    result = run("config", "show", "--json", *args, **env)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_shared_options_reach_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "my.yml"
    file.write_text("default: {run: {seed: 1, threads: 2}, iql: {gamma: 0.5}}")
    found = settings_of(
        *("--env", "A-v0", "--prices", "p.csv", "-c", str(file), "-p", "threads:3"),
        *("-p", "cql_alpha:2", "--preset", "stable", "--seed", "0", "--device", "cpu"),
        *("--log-dir", "here"),
        FINFLOW_SEED="9",
    )
    assert found["env"] == "A-v0"
    assert found["market"]["prices"] == "p.csv"
    run_ = found["run"]
    assert (run_["seed"], run_["threads"], run_["device"], run_["log_dir"]) == (0, 3, "cpu", "here")
    assert (found["iql"]["gamma"], found["cqsac"]["cql_alpha"]) == (0.5, 2.0)
    assert found["env_kwargs"]["lambda_cvar"] == 5.0


@pytest.mark.parametrize(
    ("args", "env", "expected"),
    [
        ([], {}, "finflow/US20-v0"),
        (["-c", "FILE"], {}, "A-v0"),
        ([], {"FINFLOW_ENV": "B-v0"}, "B-v0"),
        (["--env", "C-v0"], {"FINFLOW_ENV": "B-v0"}, "C-v0"),
    ],
)
def test_environment(tmp_path: Path, args: list[str], env: dict[str, str], expected: str) -> None:
    file = tmp_path / "my.yml"
    file.write_text("A-v0: {run: {seed: 1}}")
    found = settings_of(*(str(file) if arg == "FILE" else arg for arg in args), **env)
    assert found["env"] == expected


GOES_BY_ITS_RUN = {
    "watch RUN": (),
    "plot RUN": (),
    "export RUN --onnx policy.onnx": (),
    "checkpoint export RUN model.zip": (),
    "allocate RUN": ("prices",),
    "explain RUN --date 2020-12-31": ("prices",),
    "evaluate RUN": ("prices", "config", "param"),
}
"""Commands that go by a run's own settings, and the shared options that have an effect there."""


@pytest.mark.parametrize("line", GOES_BY_ITS_RUN)
def test_options_without_an_effect_are_not_shown_and_refused_with_a_reason(line: str) -> None:
    words = line.split()
    described = run(*words[: words.index("RUN")], "--help").stdout
    values = {"param": "fee:0.1", "seed": "3"}
    for field in dataclasses.fields(Shared):
        flag = f"--{field.name.replace('_', '-')}"
        shown = field.name in (*GOES_BY_ITS_RUN[line], "json", "quiet")
        assert (f" {flag} " in described) == shown, flag
        if not shown:
            result = run(*words, flag, values.get(field.name, "x"))
            assert result.exit_code == 1, flag
            assert f"leave out {flag}" in result.stderr


def test_variables_do_not_count_as_flags_that_were_given() -> None:
    result = run("watch", "none", FINFLOW_ENV="finflow/Portfolio-v0", FINFLOW_PRESET="stable")
    assert result.exit_code == 1 and "no such run" in result.stderr


def test_command_gets_shared_options_first_and_its_own_flags() -> None:
    seen = []
    small = typer.Typer()

    @small.command()
    @shared_options
    def _command(
        shared: Shared, run: str, epochs: Annotated[int | None, typer.Option("--epochs")] = None
    ) -> None:
        """What it does."""
        seen.append((run, shared_settings(shared, "iql", iql={"epochs": epochs})))

    assert CliRunner().invoke(small, ["a", "--epochs", "3", "-p", "gamma:0.5"]).exit_code == 0
    assert CliRunner().invoke(small, ["b", "--quiet"]).exit_code == 0
    assert console.quiet
    assert [(name, s.iql.epochs, s.iql.gamma) for name, s in seen] == [
        ("a", 3, 0.5),
        ("b", 50, 0.99),
    ]
    assert "What it does" in CliRunner().invoke(small, ["--help"]).stdout


# finflow config


def test_config_show_prints_yaml_that_reads_back(tmp_path: Path) -> None:
    result = run("config", "show", "-p", "cql_alpha:3", "--quiet")
    assert result.stdout == plain_yaml(resolve(algo="cqsac", params=["cql_alpha:3"], environ={}))
    file = tmp_path / "config.yml"
    file.write_text(result.stdout)
    assert run("config", "show", "-c", str(file)).stdout == result.stdout


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("iql.yml", "default: {gamma: 0.5}", None),
        ("any.yml", "A-v0: {cqsac: {gamma: 0.5}}", None),
        ("any.yml", "A-v0: {}\nB-v0: {iql: {gama: 0.5}}", "'gamma'"),
        ("any.yml", "default: {gamma: 0.5}", "iql.gamma or td3bc.gamma or cqsac.gamma"),
        ("sac.yml", "default: {gamma: 0.5, policy_kwargs: 'dict(net_arch=[8])'}", None),
        ("sac.yml", "default: {gama: 0.5}", "'gamma'"),
        ("sac.yml", "default: {env_kwargs: {fea: 0.5}}", "'fee'"),
    ],
)
def test_config_validate(tmp_path: Path, name: str, text: str, part: str | None) -> None:
    file = tmp_path / name
    file.write_text(text)
    result = run("config", "validate", str(file))
    assert result.exit_code == (0 if part is None else 1)
    assert (part or "fine") in result.stderr
    assert str(file) in result.stderr


def test_config_diff(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.yml").write_text("A-v0: {run: {seed: 1}}")
    other = tmp_path / "b.yml"
    other.write_text("A-v0: {run: {seed: 2}}")
    result = run("config", "diff", str(run_folder), str(other), "--json")
    assert json.loads(result.stdout) == {"run.seed": {"a": 1, "b": 2}}
    assert "run.seed" in run("config", "diff", str(run_folder), str(other)).stdout
    same = run("config", "diff", str(other), str(other))
    assert (same.exit_code, same.stdout) == (0, "")


# Printing


@dataclasses.dataclass
class Result:
    path: Path
    sharpe: float


def test_print_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {
            "b": np.float32(0.5),
            "a": [np.int64(3), np.bool_(True), float("nan"), np.float64("inf")],
            "c": np.array([[1.0, np.nan]]),
            "d": (np.datetime64("2020-01-02"), datetime.date(2020, 1, 3)),
            "e": Result(Path("x/y"), 1.5),
            7: {"z", "y"},
        }
    )
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=pytest.fail) == {
        "7": ["y", "z"],
        "a": [3, True, None, None],
        "b": 0.5,
        "c": [[1.0, None]],
        "d": ["2020-01-02", "2020-01-03"],
        "e": {"path": "x/y", "sharpe": 1.5},
    }
    assert text.index('"a"') < text.index('"b"')


def test_print_json_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="object"):
        print_json({"a": object()})


def test_quiet_silences_remarks_but_not_errors(capsys: pytest.CaptureFixture[str]) -> None:
    console.print("before")
    set_quiet(True)
    console.print("hidden")
    print_error("shown " * 40)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"before\nerror: {'shown ' * 39}shown\n"


# finflow doctor


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_doctor_finds_this_machine_fine(tmp_path: Path) -> None:
    result = run("doctor", "--json", "--log-dir", str(tmp_path / "a" / "logs"))
    report = json.loads(result.stdout)
    assert result.exit_code == 0, result.stdout
    assert report["ok"] is True
    checks = {check["name"]: check for check in report["checks"]}
    assert {"python", "torch", "typer", "processors", "memory", "torch threads"} <= set(checks)
    assert checks["market us20"]["found"].startswith("8313 days x 20 assets")
    assert list(tmp_path.iterdir()) == []
    assert result.stderr == ""


def test_doctor_sees_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"typer": "0.1.0", "torch": None}

    def version(name: str) -> str:
        found = versions.get(name, "0")
        if found is None or name == "yfinance":
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    file = tmp_path / "file"
    file.write_text("")
    checks = by_name(examine(file / "logs", tmp_path / "cache", "cuda:99"))
    assert checks["typer"].status == "wrong"
    assert checks["typer"].remedy.startswith("pip install 'typer")
    assert (checks["torch"].found, checks["torch"].status) == ("not installed", "wrong")
    extra = checks["yfinance (extra yahoo)"]
    assert (extra.status, extra.remedy) == ("optional", "pip install 'finflow-sb3[yahoo]'")
    assert (checks["log folder"].status, checks["cache folder"].status) == ("wrong", "ok")
    assert checks["chosen device"].status == "wrong"
    assert "pytest" not in checks  # for developers


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("optional", 0), ("wrong", 1)])
def test_doctor_exit_code(monkeypatch: pytest.MonkeyPatch, status: Any, code: int) -> None:
    check = Check("thing", "found [here]", status, "mend [it]")
    monkeypatch.setattr("finflow_sb3.doctor.examine", lambda *_: [check])
    result = run("doctor")
    assert result.exit_code == code
    assert "found [here]" in result.stdout
    assert "mend [it]" in result.stdout


def test_only_the_frame_catches_errors() -> None:
    assert app_module.app.pretty_exceptions_enable is False
