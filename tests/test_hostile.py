"""Runs, artefacts and datasets that carry code: nothing runs, and reading says why it refuses."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from learning_fixtures import tiny_settings

from finflow_sb3 import manifests
from finflow_sb3.errors import ArtefactError, CheckpointError, FinflowError
from finflow_sb3.offline.dataset_file import read_dataset
from finflow_sb3.pipeline import collect, evaluate, finetune, pretrain
from finflow_sb3.resuming import resume

MARK = "created-by-hostile-code"


class Hostile:
    """Unpickling it creates a file in the working folder."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {MARK}",)


PICKLE = pickle.dumps(Hostile())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(tiny_settings(tmp_path_factory.mktemp("hostile")), stop_at=100).run


@pytest.fixture
def copy(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "run_1"
    shutil.copytree(run, target)
    return target


def resign(folder: Path) -> None:
    """Make the manifest agree with the files, as whoever made them would."""
    content = json.loads((folder / manifests.MANIFEST).read_text())
    del content[manifests.CHECKSUM]
    for name in content["files"]:
        digest = manifests.digest_of(folder / name)
        content["files"][name] = {"sha256": digest.sha256, "size": digest.size}
    (folder / manifests.MANIFEST).write_bytes(manifests._signed(content))


def zip_with_pickle(path: Path) -> None:
    torch.save({"weight": Hostile()}, path)


FILES: dict[str, Callable[[Path], Any]] = {
    "policy.safetensors": lambda path: path.write_bytes(PICKLE),
    "random.safetensors": zip_with_pickle,
    "state.json": lambda path: path.write_bytes(PICKLE),
}


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_a_pickle_in_it(copy: Path, name: str) -> None:
    for path in (copy / "checkpoints").glob("step_*"):
        FILES[name](path / name)
        resign(path)
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read") as caught:
        resume(copy)
    assert "\n" not in str(caught.value) and not Path(MARK).exists()


TEXTS = [
    {"py/reduce": [{"py/function": "os.system"}, {"py/tuple": [f"touch {MARK}"]}]},
    {":serialized:": base64.b64encode(PICKLE).decode()},
    f"__import__('os').system('touch {MARK}')",
    f"!!python/object/apply:os.system ['touch {MARK}']",
]
"""How code hides in JSON that libraries with pickles in them read."""


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("place", ["counters", "optimizers", "random", "callback", "monitor"])
def test_code_in_the_state(copy: Path, place: str, text: Any) -> None:
    for path in (copy / "checkpoints").glob("step_*"):
        state = json.loads((path / "state.json").read_text())
        state[place] = text
        (path / "state.json").write_text(json.dumps(state))
        resign(path)
    with pytest.raises(CheckpointError, match="does not fit"):
        resume(copy)
    assert not Path(MARK).exists()


@pytest.mark.parametrize("kind", ["pointer", "file", "segment"])
def test_paths_lead_nowhere_else(copy: Path, tmp_path: Path, kind: str) -> None:
    """Names in a checkpoint are names in its folder."""
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"secret")
    latest = max((copy / "checkpoints").glob("step_*"))
    if kind == "pointer":
        (copy / "checkpoints" / "best.json").write_text('{"checkpoint": "../../outside"}')
        assert resume(copy, stop_at=101).steps > 100
        return
    content = json.loads((latest / manifests.MANIFEST).read_text())
    del content[manifests.CHECKSUM]
    entry = {"sha256": manifests.digest_of(outside).sha256, "size": 6}
    if kind == "file":
        content["files"]["../../../outside.safetensors"] = entry
    else:
        content["segments"][0] |= {"name": "../../../outside.safetensors", **entry}
    (latest / manifests.MANIFEST).write_bytes(manifests._signed(content))
    with pytest.raises(CheckpointError, match=r"outside\.safetensors: missing"):
        resume(latest)


@pytest.mark.parametrize("name", ["weights.safetensors", "policy.json", "layout.json"])
def test_a_policy_with_a_pickle_in_it(copy: Path, name: str) -> None:
    (copy / "best" / name).write_bytes(PICKLE)
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
        evaluate(copy)
    resign(copy / "best")
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
        evaluate(copy)
    assert not Path(MARK).exists()


@pytest.mark.parametrize("name", ["policy", "activation_fn"])
def test_a_policy_that_names_code(copy: Path, name: str) -> None:
    head = json.loads((copy / "best" / "policy.json").read_text())
    if name == "policy":
        head["policy"] = "os.system"
    else:
        head["sizes"] = None
        head["policy_kwargs"] = {"activation_fn": "os.system"}
    (copy / "best" / "policy.json").write_text(json.dumps(head))
    resign(copy / "best")
    with pytest.raises(FinflowError) as caught:
        evaluate(copy)
    assert "os.system" in str(caught.value) or "not whole" in str(caught.value)
    assert not Path(MARK).exists()


def test_a_configuration_with_code_in_it(copy: Path) -> None:
    for text in (
        f"default: !!python/object/apply:os.system ['touch {MARK}']\n",
        f"default:\n  cqsac:\n    policy_kwargs: \"__import__('os').system('touch {MARK}')\"\n",
    ):
        (copy / "config.yml").write_text(text)
        with pytest.raises(FinflowError, match=r"config\.yml"):
            resume(copy)
    assert not Path(MARK).exists()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    return collect(tiny_settings(folder), folder / "data.h5").path


HIDDEN: dict[str, Callable[[h5py.File], Any]] = {
    "settings": lambda file: file.attrs.__setitem__("settings", np.void(PICKLE)),
    "layout": lambda file: file.attrs.__setitem__("layout", json.dumps(TEXTS[0])),
    "format": lambda file: file.attrs.__setitem__("format", np.void(PICKLE)),
}


@pytest.mark.parametrize("place", HIDDEN)
def test_a_dataset_with_code_in_it(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(shutil.copy(dataset, tmp_path / "data.h5"))
    with h5py.File(path, "r+") as file:
        HIDDEN[place](file)
    with pytest.raises(FinflowError) as caught:
        pretrain(tiny_settings(tmp_path), path)
    assert "\n" not in str(caught.value) and not Path(MARK).exists()


def test_a_dataset_that_is_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.h5").write_bytes(PICKLE)
    np.save(Path("objects.npy"), np.array([Hostile()]), allow_pickle=True)
    for name in ("data.h5", "objects.npy"):
        with pytest.raises(ArtefactError, match="cannot be read"):
            read_dataset(Path(name))
    assert not Path(MARK).exists()
    pickle.loads(PICKLE)  # noqa: S301 - what would have happened
    assert Path(MARK).exists()
