"""Tensors to a safetensors file and back, piece by piece.

A replay buffer may fill most of the memory there is: neither direction holds a second copy of
it. safetensors' own `save` returns one, and its mapped files count as memory while they are read.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finflow_sb3.errors import CheckpointError
from finflow_sb3.manifests import Digest

__all__ = ["StoredRows", "TensorFile", "header_of", "pieces_of", "write_tensors"]

PIECE = 1 << 25
# In the order in which safetensors writes them: widest first, so that all numbers are aligned.
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _in_order(named: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """As safetensors orders them, by type and then by name."""
    rank = {dtype: i for i, dtype in enumerate(DTYPES)}
    return sorted(named.items(), key=lambda item: (rank[item[1].dtype], item[0]))


def header_of(named: Mapping[str, Tensor]) -> bytes:
    """The first bytes of the file: length of the JSON, then name → type, shape and place."""
    entries, start = {}, 0
    for name, tensor in _in_order(named):
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def pieces_of(named: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """What follows the header: views of the tensors' memory; of a GPU's, copies of pieces."""
    for _, tensor in _in_order(named):
        if tensor.numel() == 0:
            continue
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        for start in range(0, len(flat), PIECE):
            yield flat[start : start + PIECE].cpu().numpy().data


def write_tensors(path: Path, named: Mapping[str, Tensor]) -> Digest:
    """Write a safetensors file straight from the tensors' memory; gives its checksum."""
    with path.open("wb") as file:
        pieces = itertools.chain([header_of(named)], pieces_of(named))
        return Digest.of(_copied(pieces, file))


def _copied(pieces: Iterator[Any], file: BinaryIO) -> Iterator[Any]:
    for piece in pieces:
        file.write(piece)
        yield piece


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, read when they are asked for. Executes nothing.

    Raises
    ------
    CheckpointError
        If the file is no safetensors file, when it is opened; if it has gone, when it is read.
    """

    def __init__(self, path: Path):
        self.path = path
        with _opened(path, "pt") as file:
            self._names = dict.fromkeys(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        self._require(name)
        with _opened(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            # What was mapped would change with the file.
            return tensor.clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def rows(self, name: str) -> StoredRows:
        """A tensor to be read slice by slice."""
        self._require(name)
        return StoredRows(self.path, name)

    def _require(self, name: str) -> None:
        if name not in self._names:
            raise KeyError(f"{self.path.name} has no {name}")


class StoredRows:
    """A tensor of a file, of which slices of the first axis are read.

    Attributes
    ----------
    shape : of the whole tensor
    """

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        with _opened(path, "np") as file:
            self.shape: tuple[int, ...] = tuple(file.get_slice(name).get_shape())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        # Opened anew each time: pages of the mapped file stay in memory until it is closed.
        with _opened(self.path, "np") as file:
            part: NDArray[Any] = file.get_slice(self.name)[rows]
            return part


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
