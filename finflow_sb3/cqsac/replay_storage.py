"""Where replay buffers keep their arrays: NumPy on the host, tensors on a GPU.

On the CPU an array and the tensor that batches are drawn from are the same memory. On a GPU the
tensor is all there is, and `DeviceArray` stands in the array's place, so that what SB3 wrote for
NumPy (`add`, `dones[pos] = True`) goes on working.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray

__all__ = ["DeviceArray", "Drawn", "Tables", "moved", "placed", "tensor_of"]


class Drawn(NamedTuple):
    """Which transitions make a batch: slot and environment of each, int64 [B]."""

    slots: NDArray[np.int64]
    envs: NDArray[np.int64]


class DeviceArray:
    """A tensor on a device that takes and gives NumPy arrays.

    Parameters
    ----------
    array : what it holds at the start
    """

    def __init__(self, array: NDArray[Any], device: th.device):
        self.dtype, self.shape = array.dtype, array.shape
        self.tensor = th.from_numpy(np.ascontiguousarray(array)).to(device, copy=True)

    def __setitem__(self, at: Any, value: Any) -> None:
        array = np.array(value, dtype=self.dtype)
        self.tensor[at] = moved(th.from_numpy(array), self.tensor.device)

    def __getitem__(self, at: Any) -> NDArray[Any]:
        return self.tensor[at].cpu().numpy().copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.tensor.cpu().numpy(), dtype=dtype)

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def __reduce__(self) -> Any:
        # What is saved on one machine may be read on another that has no such device.
        return np.array, (np.asarray(self),)


Storage = NDArray[Any] | DeviceArray


class Tables:
    """Arrays of shape [slots, n_envs, ...] as tensors with one row for each transition.

    The tensor of an array is made once, and made anew where another array has taken its place.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Storage, th.Tensor]] = {}

    def of(self, name: str, stored: Storage) -> th.Tensor:
        """The memory of `stored`, known as `name`, as a tensor [slots · n_envs, ...]."""
        known = self._known.get(name)
        if known is None or known[0] is not stored:
            tensor = tensor_of(stored)
            # Never a copy: it would go on showing what was stored when it was made.
            table = tensor.view(tensor.shape[0] * tensor.shape[1], *tensor.shape[2:])
            known = self._known[name] = stored, table
        return known[1]


def tensor_of(stored: Storage) -> th.Tensor:
    """The memory of an array as a tensor."""
    return stored.tensor if isinstance(stored, DeviceArray) else th.from_numpy(stored)


def placed(stored: Any, device: th.device) -> Any:
    """An array, or each of a dictionary of them, on this device."""
    if isinstance(stored, dict):
        return {name: placed(array, device) for name, array in stored.items()}
    return stored if device.type == "cpu" else DeviceArray(stored, device)


def moved(tensor: th.Tensor, device: th.device) -> th.Tensor:
    """A tensor on this device; to a GPU it goes from pinned memory, without waiting for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
