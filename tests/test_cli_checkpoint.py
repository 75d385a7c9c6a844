"""`finflow checkpoint` and `finflow profile`, as somebody types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pipeline_fixtures import runs_in, tiny_settings
from test_cli_pipeline import fine, run

from finflow_sb3 import pipeline
from finflow_sb3.errors import ArtefactError, CheckpointError
from finflow_sb3.runs.inspection import list_checkpoints, verify_checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    settings = tiny_settings(folder, run={"checkpoint_interval": 4, "tensorboard": False})
    return pipeline.finetune(settings).run


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_list(trained: Path) -> None:
    found = list_checkpoints(trained)
    steps = [one.step for one in found]
    assert len(found) > 2 and steps == sorted(steps)
    assert "latest" in found[-1].named and not any("latest" in one.named for one in found[:-1])
    printed = fine("checkpoint", "list", trained).stdout
    assert all(one.path.name in printed for one in found) and "latest" in printed
    rows = json.loads(fine("checkpoint", "list", trained, "--json").stdout)
    assert [row["step"] for row in rows] == steps
    assert all(row["size"] == one.size > 10_000 for row, one in zip(rows, found, strict=True))


def test_verify_whole(trained: Path) -> None:
    found = verify_checkpoints(trained)
    assert found.damaged == () and len(found.whole) == len(list_checkpoints(trained))
    assert fine("checkpoint", "verify", trained).stdout.count(": whole") == len(found.whole)


def test_verify_names_all_that_is_damaged(copy: Path) -> None:
    first, second, *_, last = (one.path for one in list_checkpoints(copy))
    content = bytearray((first / "policy.safetensors").read_bytes())
    content[-1] ^= 1
    (first / "policy.safetensors").write_bytes(content)
    (second / "state.json").unlink()
    (last / "manifest.json").unlink()
    result = run("checkpoint", "verify", copy)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    for line, words in zip(
        lines, (f"{first}/policy", f"{second}/state", f"{last}/mani"), strict=True
    ):
        assert line.startswith("error: ") and words in line
    assert result.stdout.count(": whole") == len(list_checkpoints(copy)) - 3
    answer = run("checkpoint", "verify", copy, "--json")
    assert answer.exit_code == 1 and len(json.loads(answer.stdout)["damaged"]) == 3


@pytest.mark.parametrize("content", ['{"checkpoint": "step_000000000007"}', "{"])
def test_verify_follows_the_pointers(copy: Path, content: str) -> None:
    (copy / "checkpoints" / "best.json").write_text(content)
    (problem,) = verify_checkpoints(copy).damaged
    assert "best.json" in problem


def test_nothing_to_verify(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoints"):
        verify_checkpoints(copy)
    assert "no checkpoints" in fine("checkpoint", "list", copy).stdout
    with pytest.raises(ArtefactError, match="no such run"):
        verify_checkpoints(tmp_path / "nowhere")


def test_export_and_import(folder: Path, trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.zip"
    step = list_checkpoints(trained)[0].step
    answer = fine("checkpoint", "export", trained, target, "--checkpoint", f"step_{step}", "--json")
    assert json.loads(answer.stdout)["steps"] == step
    refused = run("checkpoint", "export", trained, target, "--seed", "3")
    assert refused.exit_code == 1 and "leave out --seed" in refused.stderr
    given = ("checkpoint", "import", target, "-c", folder / "tiny.yml", "--log-dir", tmp_path)
    untrusted = run(*given)
    assert untrusted.exit_code == 1 and len(untrusted.stderr.splitlines()) == 1
    assert "can run code" in untrusted.stderr and "--trust" in untrusted.stderr
    assert not runs_in(tmp_path)
    printed = fine(*given, "--trust").stdout
    (imported,) = runs_in(tmp_path)
    assert f"finflow finetune --resume {imported}" in printed and f"{step:,} steps" in printed
    resumed = fine("finetune", "--resume", imported, "--n-timesteps", step + 160, "--json")
    assert json.loads(resumed.stdout)["finished"]


def test_profile(folder: Path, tmp_path: Path) -> None:
    given = ("profile", "-c", folder / "tiny.yml", "--log-dir", tmp_path, "--updates-warmup", "1")
    printed = fine(*given, "--steps", "2").stdout
    (output,) = runs_in(tmp_path)
    for words in ("CQL penalty: backward", "other", "100.0%", "aten::", "Updates a second"):
        assert words in printed
    assert output.parent.name == "profile" and str(output / "trace.json.gz") in printed
    elsewhere = tmp_path / "elsewhere"
    answer = fine(*given, "--steps", "1", "--output", elsewhere, "--json")
    assert json.loads(answer.stdout)["trace"] == str(elsewhere / "trace.json.gz")
    assert run("profile", "--steps", "0").exit_code == 2
