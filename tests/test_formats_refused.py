"""Datasets of others that are damaged or carry code: one line says so, and nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from gymnasium import spaces
from plain_fixtures import (
    pendulum_episodes,
    random_episodes,
    write_d3rlpy_file,
    write_d3rlpy_v1,
    write_minari_data,
)

from finflow_sb3.errors import ArtefactError, ConfigError, FinflowError, MissingExtraError
from finflow_sb3.offline.formats import is_plain, read_plain
from finflow_sb3.offline.spaces import Spaces

MARK = "created-by-hostile-code"
ENDS = (True, False)


class Hostile:
    """Unpickling it creates a file in the working folder."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {MARK}",)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path


def refused(source: str | Path, message: str, kind: type[FinflowError] = ArtefactError) -> None:
    with pytest.raises(kind, match=message) as caught:
        read_plain(source)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    assert not Path(MARK).exists()


# ------------------------------------------------------------------ d3rlpy


Damage = Callable[[h5py.File], Any]


def put(name: str, value: Any) -> Damage:
    """Another array in the place of one."""

    def damage(file: h5py.File) -> None:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value

    return damage


def scaled(name: str, factor: Any) -> Damage:
    return lambda file: put(name, file[name][()] * factor)(file)


PICKLED = np.array([pickle.dumps(Hostile()).hex()] * 8)
STRINGS = np.array([[b"0.5", b"x"]] * 8)
BOTH: dict[str, tuple[Damage, str]] = {
    "strings": (lambda file: put(_own(file, "rewards"), STRINGS)(file), "rewards.* holds .S3"),
    "objects": (
        lambda file: put(_own(file, "actions"), PICKLED.astype(h5py.string_dtype()))(file),
        "actions.* holds object instead of numbers",
    ),
    "missing": (lambda file: put(_own(file, "rewards"), None)(file), "lacks 'rewards"),
    "a group": (lambda file: _grouped(file, _own(file, "rewards")), "cannot be read"),
    "NaN": (
        lambda file: scaled(_own(file, "observations"), np.nan)(file),
        "observations of .* NaN",
    ),
    "discrete": (
        lambda file: put(_own(file, "actions"), np.ones((8, 1), np.int64))(file),
        "its actions are discrete",
    ),
    "beyond": (lambda file: scaled(_own(file, "actions"), 3.0)(file), r"--action-range -2 2"),
    "images": (
        lambda file: put(_own(file, "observations"), np.zeros((8, 1, 4, 4), np.uint8))(file),
        "its observations are images",
    ),
}


def _own(file: h5py.File, name: str) -> str:
    return name if name in file else f"{name}_0"


def _grouped(file: h5py.File, name: str) -> None:
    put(name, None)(file)
    file.create_group(name)


@pytest.mark.parametrize("version", [write_d3rlpy_file, write_d3rlpy_v1])
@pytest.mark.parametrize("case", BOTH)
def test_d3rlpys_files_with_something_else_in_them(
    tmp_path: Path, version: Callable[..., Path], case: str
) -> None:
    path = version(tmp_path / "theirs.h5", random_episodes(*ENDS))
    damage, message = BOTH[case]
    with h5py.File(path, "a") as file:
        damage(file)
    if case == "missing" and version is write_d3rlpy_v1:
        message = "is no dataset"
    refused(path, message)


NEW: dict[str, tuple[Damage, str]] = {
    "old version": (put("version", "2.0"), "version 2.0"),
    "too many": (put("num_episodes", 10**12), "num_episodes is 1000000000000"),
    "none": (put("num_episodes", 0), "num_episodes is 0"),
    "one too many": (put("num_episodes", 3), "lacks 'actions_2'"),
    "shorter": (put("actions_1", np.zeros((4, 2), np.float32)), "episode 1 has 8 observations, 4"),
    "wider": (
        put("actions_1", np.zeros((8, 3), np.float32)),
        "actions of episode 1 have 3 numbers",
    ),
    "wide rewards": (put("rewards_1", np.zeros((8, 2))), "rewards of episode 1 have 2 numbers"),
    "tuples": (
        lambda file: (
            put("observations_0", None)(file),
            put("observations_0_0", np.zeros(3))(file),
        ),
        "observations_0 is a tuple",
    ),
}


@pytest.mark.parametrize("case", NEW)
def test_episodes_that_do_not_fit(tmp_path: Path, case: str) -> None:
    path = write_d3rlpy_file(tmp_path / "theirs.h5", random_episodes(*ENDS))
    damage, message = NEW[case]
    with h5py.File(path, "a") as file:
        damage(file)
    refused(path, message)


def test_flat_arrays_that_do_not_fit(tmp_path: Path) -> None:
    path = write_d3rlpy_v1(tmp_path / "old.h5", random_episodes(*ENDS))
    with h5py.File(path, "a") as file:
        put("rewards", np.zeros(3))(file)
    refused(path, r"its arrays have \[3, 15\] rows")
    with h5py.File(path, "a") as file:
        put("rewards", np.zeros(15))(file)
        scaled("terminals", 0.0)(file)
        put("episode_terminals", np.zeros(15))(file)
    refused(path, "no episode ends in it")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files(tmp_path: Path, share: float) -> None:
    path = write_d3rlpy_file(tmp_path / "theirs.h5", random_episodes(*ENDS))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert not is_plain(path)
    refused(path, "is no dataset")


def test_episodes_of_one_step_are_no_transitions(tmp_path: Path) -> None:
    path = write_d3rlpy_file(tmp_path / "short.h5", random_episodes(False, length=1))
    refused(path, "holds no transition")


# ------------------------------------------------------------------ .npz


def arrays(**changes: Any) -> dict[str, Any]:
    steps = np.arange(12, dtype=np.float32)
    out = {
        "observations": np.stack([steps, -steps], axis=1),
        "next_observations": np.stack([steps + 1, -steps - 1], axis=1),
        "actions": steps[:, None] / 20,
        "rewards": steps,
        "terminals": steps == 4,
        "timeouts": steps == 11,
    }
    return {k: v for k, v in {**out, **changes}.items() if v is not None}


def test_npz_of_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays(timeouts=np.zeros(12)))
    dataset = read_plain(tmp_path / "data.npz")
    assert len(dataset) == 12 and dataset.n_episodes == 2
    np.testing.assert_array_equal(dataset.terminal, [True, False])
    assert dataset.observations[dataset.after[4]].tolist() == [5.0, -5.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "lacks .*rewards"),
        ({"rewards": np.array([Hostile()] * 12)}, "Object arrays cannot be loaded"),
        ({"actions": np.array([["x"]] * 12)}, "actions holds <U1"),
        ({"actions": np.zeros(12, int)}, "discrete"),
        ({"actions": np.full((12, 1), 3.0)}, "--action-range"),
        ({"rewards": np.zeros(11)}, r"its arrays have \[11, 12\] rows"),
        ({"next_observations": np.zeros((12, 2))}, "rows 0 to 4 are not one episode"),
        ({"observations": np.full((12, 2), np.inf)}, "rows|infinite"),
    ],
    ids=["missing", "pickle", "strings", "discrete", "beyond", "short", "shuffled", "infinite"],
)
def test_npz_with_something_else_in_it(tmp_path: Path, changes: Any, message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays(**changes))
    refused(tmp_path / "data.npz", message)


@pytest.mark.parametrize("content", [pickle.dumps(Hostile()), b"", b"PK\x03\x04 and no more"])
def test_npz_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    refused(tmp_path / "data.npz", "cannot be read")


def test_a_pickle_in_the_zip(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays(rewards=None))
    with zipfile.ZipFile(tmp_path / "data.npz", "a") as archive:
        archive.writestr("rewards.npy", pickle.dumps(Hostile()))
    refused(tmp_path / "data.npz", "cannot be read")


# ------------------------------------------------------------------ Minari


def space(kind: str) -> Any:
    return {
        "Discrete": spaces.Discrete(3),
        "MultiBinary": spaces.MultiBinary(3),
        "Dict": spaces.Dict({"x": spaces.Box(-1, 1, (3,))}),
        "Tuple": spaces.Tuple([spaces.Box(-1, 1, (3,))]),
        "Text": spaces.Text(5),
    }[kind]


@pytest.mark.parametrize("kind", ["Discrete", "MultiBinary", "Dict", "Tuple", "Text"])
@pytest.mark.parametrize("which", ["observation", "action"])
def test_other_spaces_are_refused_by_name(tmp_path: Path, kind: str, which: str) -> None:
    own = {f"{which}_space": space(kind)}
    folder = write_minari_data(tmp_path / "other-v0", (), **own)
    refused(folder, f"its {which} space is a {kind}; the offline phase needs a Box")


def metadata_of(folder: Path, **changes: Any) -> None:
    """Change entries of the metadata; None takes one out."""
    path = folder / "data" / "metadata.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def hostile_spec() -> str:
    """An environment whose making is a call of the file's choice."""
    spec = gymnasium.spec("Pendulum-v1").to_json()
    call = {"entry_point": "os:system", "kwargs": {"command": f"touch {MARK}"}}
    return json.dumps({**json.loads(spec), **call, "id": "Hostile-v0"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_minari_data(tmp_path / "pendulum-v0", pendulum_episodes())


def test_the_environment_is_never_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: Any, **__: Any) -> Any:
        pytest.fail("the environment was made")

    monkeypatch.setattr(gymnasium, "make", made)
    metadata_of(folder, env_spec=hostile_spec(), eval_env_spec=hostile_spec())
    assert len(read_plain(folder)) == 360
    # Minari itself makes it where a space is missing.
    metadata_of(folder, observation_space=None)
    refused(folder, "lacks 'observation_space'")
    metadata_of(folder, action_space=None)
    refused(folder, "lacks 'observation_space'")


BOX = {"type": "Box", "dtype": "float32", "shape": [1], "low": [-2.0], "high": [2.0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_format": "pickle"}, "pickle"),
        ({"data_format": None}, "lacks 'data_format'"),
        ({"total_episodes": 13}, "cannot be read|lacks"),
        ({"action_space": "{"}, "cannot be read"),
        ({"action_space": json.dumps({**BOX, "low": [-np.inf]})}, "enclose no box"),
        ({"action_space": json.dumps({**BOX, "low": [2.0]})}, "enclose no box"),
        ({"action_space": json.dumps({**BOX, "shape": [2]})}, "do not fit"),
        ({"action_space": json.dumps({**BOX, "dtype": "object"})}, "cannot be read"),
        ({"action_space": json.dumps({**BOX, "shape": [10**9]})}, "do not fit"),
        (
            {"observation_space": json.dumps(BOX)},
            "observations of episode 0 have 3",
        ),
        (
            {"observation_space": json.dumps({**BOX, "shape": [64, 64, 3], "dtype": "uint8"})},
            "its observations are images",
        ),
    ],
)
def test_metadata_that_are_not_whole(folder: Path, changes: Any, message: str) -> None:
    metadata_of(folder, **changes)
    refused(folder, message)


def test_data_that_are_not_whole(folder: Path) -> None:
    path = folder / "data" / "main_data.hdf5"
    content = path.read_bytes()
    with h5py.File(path, "a") as file:
        file["episode_3/terminations"][4] = True
    refused(folder, "episode 3 goes on after its end")
    with h5py.File(path, "a") as file:
        del file["episode_3/terminations"]
        file["episode_3/terminations"] = np.array([b"x"] * 30)
    refused(folder, "cannot be read")
    path.write_bytes(content[: len(content) // 2])
    refused(folder, "cannot be read|lacks")
    path.unlink()
    refused(folder, "cannot be read")
    (folder / "data" / "metadata.json").write_bytes(pickle.dumps(Hostile()))
    refused(folder, "cannot be read")


def test_what_is_not_there(tmp_path: Path) -> None:
    refused("minari:D4RL/pen/human-v2", "get it with minari download D4RL/pen/human-v2")
    refused("minari:no version", "is no Minari dataset", ConfigError)
    refused("minari:../../etc-v0", "is no Minari dataset", ConfigError)
    refused(tmp_path / "nothing.h5", "no such dataset")
    refused(tmp_path, "is no dataset of d3rlpy or Minari")


def test_a_range_for_bounds_that_are_known(folder: Path) -> None:
    with pytest.raises(ConfigError, match="has its own bounds"):
        read_plain(folder, (-1.0, 1.0))


def test_without_minari(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "minari"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("finflow_sb3.offline.minari_store.find_spec", lambda _: None)
    refused(folder, r'pip install "finflow-sb3\[minari\]"', MissingExtraError)
    refused("minari:x-v0", r'pip install "finflow-sb3\[minari\]"', MissingExtraError)


@pytest.mark.parametrize(
    ("low", "high"),
    [((0.0,), (1.0, 2.0)), ((1.0,), (1.0,)), ((-np.inf,), (1.0,)), ((np.nan,), (1.0,))],
)
def test_spaces_that_are_none(low: Any, high: Any) -> None:
    with pytest.raises(ArtefactError, match=r"do not fit|enclose no box"):
        Spaces((3,), (1,), low, high)


@pytest.mark.parametrize("content", [{}, {"low": 3}, {"observation_shape": "x"}])
def test_spaces_that_are_not_whole(content: Any) -> None:
    with pytest.raises(ArtefactError, match="not whole"):
        Spaces.from_dict(
            {**Spaces((3,), (1,), (0.0,), (1.0,)).as_dict(), **content} if content else {}
        )


def test_a_byte_that_was_flipped_inside_an_archive(tmp_path: Path) -> None:
    np.savez("x.npz", **arrays())
    content = bytearray(Path("x.npz").read_bytes())
    with zipfile.ZipFile("x.npz") as archive:
        places = [item.header_offset + 200 for item in archive.infolist()]
    content[places[0]] ^= 255
    Path("x.npz").write_bytes(bytes(content))
    refused("x.npz", "cannot be read")


def test_arrays_that_were_never_written_take_no_memory(tmp_path: Path) -> None:
    with h5py.File("x.h5", "w") as file:
        for name in ("observations", "actions", "rewards", "terminals"):
            file.create_dataset(name, (10**13, 1), "f4", chunks=(1024, 1))
    refused("x.h5", "was never written")


def test_arrays_in_other_files_are_not_read(tmp_path: Path) -> None:
    with h5py.File("other.h5", "w") as file:
        file["observations"] = np.zeros((4, 2), "f4")
    with h5py.File("x.h5", "w") as file:
        file["observations"] = h5py.ExternalLink("other.h5", "/observations")
        for name in ("actions", "rewards", "terminals"):
            file[name] = np.zeros((4, 1), "f4")
    refused("x.h5", "does not lie in the file")
