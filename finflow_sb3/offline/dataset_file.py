"""Our own dataset file: HDF5 whose arrays lie in one piece each, so that they can be mapped.

It is written piece by piece and read by memory map: neither needs the memory of the whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import ArtefactError
from finflow_sb3.files import whole_file
from finflow_sb3.market.cache import content_key
from finflow_sb3.offline.dataset import Head, OfflineDataset
from finflow_sb3.offline.dataset_checks import Checks, Sizes, expected_forms
from finflow_sb3.offline.waves import Piece

__all__ = ["new_dataset", "read_dataset", "write_dataset"]

FORMAT = "finflow-dataset-2"
CHUNK_BYTES = 1 << 22
# Checked before anyone would see a bar.
QUICK_BYTES = 1 << 28
# One row each for a day, a transition and an episode.
COUNTED = ("market_rows", "row", "behaviour")
Progress = Callable[[int, int], None]


# ------------------------------------------------------------------ writing


@contextmanager
def new_dataset(path: Path, head: Head, sizes: Sizes) -> Iterator[Callable[[Piece], None]]:
    """A dataset file to fill with pieces, which takes its name once it is whole.

    Yields a function that appends to arrays; in the end each must have its full length.

    Raises
    ------
    StorageError
        If there is no space for it; what stood there is unharmed.
    """
    import h5py

    with whole_file(path) as new:
        _allocate(new, head, sizes)
        with h5py.File(new, "r+") as file:
            filling = _Filling(file, list(expected_forms(head.layout, sizes)))
            yield filling.add
            file.attrs.modify("checksum", np.bytes_(_joint(filling.digests(), head)))


def _allocate(path: Path, head: Head, sizes: Sizes) -> None:
    """Make all arrays, and take their space on the disk: a full one is found here or never."""
    import h5py

    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_layout(h5py.h5d.CONTIGUOUS)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w") as file:
        for name, (shape, kind) in expected_forms(head.layout, sizes).items():
            kind_id = h5py.h5t.py_create(np.dtype(kind), logical=True)
            h5py.h5d.create(
                file.id, name.encode(), kind_id, h5py.h5s.create_simple(shape), dcpl=early
            )
        file.attrs["format"] = FORMAT
        file.attrs["checksum"] = np.bytes_("0" * 64)
        for name, text in head.as_json().items():
            file.attrs[name] = text
    handle = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(handle, 0, os.fstat(handle).st_size)
    finally:
        os.close(handle)


class _Filling:
    """Appends to the arrays of an open file, and hashes what it appends."""

    def __init__(self, file: Any, names: list[str]):
        self.arrays = {name: file[name] for name in names}
        self.done = dict.fromkeys(names, 0)
        self.hashes = {name: hashlib.sha256() for name in names}

    def add(self, piece: Piece) -> None:
        for name, values in piece.items():
            start = self.done[name]
            self.done[name] += len(values)
            self.arrays[name][start : self.done[name]] = values
            self.hashes[name].update(np.ascontiguousarray(values).data)

    def digests(self) -> dict[str, str]:
        for name, array in self.arrays.items():
            if self.done[name] != len(array):
                raise ValueError(f"{name}: {self.done[name]} of {len(array)} rows were given")
        return {name: digest.hexdigest() for name, digest in self.hashes.items()}


def _joint(digests: dict[str, str], head: Head) -> str:
    """One checksum of the arrays' own and the head; forms of arrays are checked by themselves."""
    return content_key(digests, head.as_json())


def write_dataset(dataset: OfflineDataset, path: Path) -> None:
    """Write a dataset, whole or not at all.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    forms = expected_forms(dataset.layout, dataset.sizes)
    with new_dataset(path, dataset.head, dataset.sizes) as add:
        for name in forms:
            add({name: getattr(dataset, name)})


# ------------------------------------------------------------------ reading


class Place(NamedTuple):
    """Where in a file an array lies, in bytes, and its form."""

    offset: int
    shape: tuple[int, ...]
    kind: np.dtype[Any]


def read_dataset(path: Path, on_progress: Progress | None = None) -> OfflineDataset:
    """Read what `new_dataset` or `write_dataset` wrote. Nothing in the file is executed.

    Every byte is compared with the checksum first; then the arrays are mapped, so that only
    what is used comes into memory.

    Parameters
    ----------
    on_progress : called with (bytes checked, bytes), unless the file is small

    Raises
    ------
    ArtefactError
        If the file is missing, of another kind, or not whole; the message names the part.
    """
    import h5py

    if not path.exists():
        raise ArtefactError(f"{path}: no such dataset; write one with finflow collect")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise ArtefactError(f"{path}: no finflow dataset; write one with finflow collect")
            head = _head(file, path)
            rows, transitions, episodes = (len(file[name]) for name in COUNTED)
            sizes = Sizes(rows, transitions, episodes, len(head.behaviours))
            places = _places(file, head, sizes, path)
            _verify(file, places, head, sizes, path, on_progress)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}); collect it again") from None
    arrays: dict[str, Any] = {name: _mapped(path, place) for name, place in places.items()}
    return OfflineDataset(**vars(head), **arrays)


def _head(file: Any, path: Path) -> Head:
    try:
        return Head.from_json({name: file.attrs[name] for name in Head.NAMES})
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from None


def _places(file: Any, head: Head, sizes: Sizes, path: Path) -> dict[str, Place]:
    """Where all arrays lie.

    Raises
    ------
    ArtefactError
        If one has another form than the dataset's sizes ask for, or does not lie in the file.
    """
    import h5py

    places = {}
    for name, (shape, kind) in expected_forms(head.layout, sizes).items():
        array, link = file[name], file.get(name, getlink=True)
        if array.shape != shape:
            raise _refused(path, f"{name} has shape {array.shape}, expected {shape}")
        if array.dtype != kind:
            raise _refused(path, f"{name} is {array.dtype}, expected {kind}")
        offset = array.id.get_offset()
        elsewhere = not isinstance(link, h5py.HardLink) or array.external or array.is_virtual
        if elsewhere or (offset is None and array.size):
            raise _refused(path, f"{name} does not lie in one piece in the file")
        places[name] = Place(offset or 0, shape, array.dtype)
    return places


def _verify(
    file: Any,
    places: dict[str, Place],
    head: Head,
    sizes: Sizes,
    path: Path,
    on_progress: Progress | None,
) -> None:
    """Check every array, and all of them against the checksum."""
    checks, digests, done = Checks(sizes), {}, 0
    total = sum(file[name].nbytes for name in places)
    for name in places:
        digest = hashlib.sha256()
        for chunk in _chunks(file[name]):
            wrong = checks.chunk(name, chunk)
            if wrong is not None:
                raise _refused(path, wrong)
            digest.update(chunk.data)
            done += chunk.nbytes
            if on_progress is not None and total > QUICK_BYTES:
                on_progress(done, total)
        digests[name] = digest.hexdigest()
    wrong = checks.end()
    if wrong is not None:
        raise _refused(path, wrong)
    if file.attrs["checksum"].decode() != _joint(digests, head):
        raise _refused(path, "its arrays do not match its checksum")


def _chunks(array: Any) -> Iterator[NDArray[Any]]:
    """Rows of an array of a file, some megabytes at a time."""
    each = max(1, CHUNK_BYTES * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), each):
        yield np.ascontiguousarray(array[start : start + each])


def _mapped(path: Path, place: Place) -> NDArray[Any]:
    """An array of a file. Changes of it stay in this process (none are made)."""
    if 0 in place.shape:
        return np.empty(place.shape, place.kind)
    return np.asarray(np.memmap(path, place.kind, mode="c", offset=place.offset, shape=place.shape))


def _refused(path: Path, what: str) -> ArtefactError:
    return ArtefactError(f"{path}: {what}; collect it again")
