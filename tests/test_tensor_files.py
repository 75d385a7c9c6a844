"""safetensors files, written and read in pieces, are what safetensors itself writes and reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from finflow_sb3.errors import CheckpointError
from finflow_sb3.runs import tensor_files
from finflow_sb3.runs.checkpoints import CheckpointStore, read_checkpoint
from finflow_sb3.runs.tensor_files import DTYPES, TensorFile, header_of, pieces_of


def content_of(named: dict[str, torch.Tensor]) -> bytes:
    return header_of(named) + b"".join(pieces_of(named))


def random_tensors(seed: int, count: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    out = {}
    for i in range(count):
        shape = rng.integers(0, 5, size=rng.integers(0, 4)).tolist()
        dtype = list(DTYPES)[rng.integers(len(DTYPES))]
        name = "".join(rng.choice(list('ab./é"\\ '), size=4)) + str(i)
        out[name] = torch.from_numpy(rng.normal(0, 50, size=shape)).to(dtype)
    return out


@given(seed=st.integers(0, 10_000), count=st.integers(0, 8))
def test_bytes_are_safetensors_own(seed: int, count: int) -> None:
    named = random_tensors(seed, count)
    assert content_of(named) == save(named)


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 25])
def test_pieces_are_views_and_no_longer_than_asked(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "PIECE", piece)
    named = {"a": torch.arange(40.0).view(10, 4)[:7], "b": torch.tensor(3), "c": torch.zeros(0, 2)}
    pieces = list(pieces_of(named))
    assert max(len(p) for p in pieces) <= piece
    named["a"][0, 0] = 5.0
    assert header_of(named) + b"".join(pieces) == save({k: v.clone() for k, v in named.items()})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4).T,
        torch.nn.Parameter(torch.ones(3)),
        torch.ones(2).expand(3, 2),
    ],
    ids=["transposed", "parameter", "expanded"],
)
def test_tensors_that_are_no_plain_memory(tensor: torch.Tensor) -> None:
    assert content_of({"x": tensor}) == save({"x": tensor.detach().contiguous()})


def test_names_may_share_memory() -> None:
    x = torch.arange(6.0)
    assert content_of({"a": x, "b": x[2:]}) == save({"a": x.clone(), "b": x[2:].clone()})


# ------------------------------------------------------------------- reading


@given(seed=st.integers(0, 10_000), count=st.integers(0, 8))
def test_reading_is_the_inverse(
    seed: int, count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "inverse.safetensors"
    named = random_tensors(seed, count)
    path.write_bytes(content_of(named))
    file, plain = TensorFile(path), load_file(path)
    assert set(file) == set(named) and len(file) == len(named)
    for name, tensor in named.items():
        assert file[name].dtype == tensor.dtype and file[name].shape == tensor.shape
        assert torch.equal(file[name], tensor) and torch.equal(plain[name], tensor)


def test_rows_are_read_in_slices(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    x = torch.arange(60.0).view(10, 2, 3)
    path.write_bytes(content_of({"other": torch.ones(3), "x": x}))
    rows = TensorFile(path).rows("x")
    assert rows.shape == (10, 2, 3) and len(rows) == 10
    for start, stop in ((0, 10), (3, 4), (9, 10), (4, 4)):
        np.testing.assert_array_equal(rows[start:stop], x[start:stop].numpy())


def test_what_was_read_stays_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content_of({"x": torch.ones(4)}))
    file = TensorFile(path)
    x, part = file["x"], file.rows("x")[0:2]
    with path.open("r+b") as other:
        other.seek(-16, 2)
        other.write(bytes(16))
    assert (x == 1.0).all() and (part == 1.0).all()
    assert file["x"].tolist() == [0.0] * 4


def test_an_unknown_name_is_a_key_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content_of({"x": torch.ones(4)}))
    file = TensorFile(path)
    assert "y" not in file
    for read in (file.__getitem__, file.rows):
        with pytest.raises(KeyError, match="y"):
            read("y")


@pytest.mark.parametrize("content", [b"", b"12345678", b"\x02" + bytes(7) + b"[]", b"\xff" * 20])
def test_what_is_no_safetensors_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read"):
        TensorFile(path)


@pytest.mark.parametrize("kind", ["gone", "half"])
def test_a_file_that_goes_away_later(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content_of({"x": torch.ones(400)}))
    file = TensorFile(path)
    rows = file.rows("x")
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:500])
    for read in (lambda: file["x"], lambda: rows[0:2], lambda: file.rows("x")):
        with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read"):
            read()


def test_a_bad_file_with_the_right_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wrote it: a manifest that agrees with rubbish makes no checkpoint of it."""

    monkeypatch.setattr(tensor_files, "header_of", lambda named: b"rubbish!" * 3)
    path = CheckpointStore(tmp_path).write(1, {"x": {"a": torch.ones(2)}}, {})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: cannot be read"):
        read_checkpoint(path)
