"""Mixed precision: products of matrices in 16 bits, everything that is summed up in 32."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch as th
from torch import Tensor
from torch.nn.utils import get_total_norm

from finflow_sb3.errors import ConfigError

__all__ = ["MODES", "Precision"]

MODES = ("off", "auto", "bf16", "fp16")


class Precision:
    """Autocast, and a gradient scaler where the range of the format asks for one.

    bf16 has the range of float32: no scaler. fp16 underflows without one; it is CUDA's.

    Parameters
    ----------
    mode : `off`, `bf16`, `fp16`, or `auto`: fp16 on CUDA without bf16, else bf16

    Raises
    ------
    ConfigError
        If the device can't do it.
    """

    def __init__(self, mode: str, device: th.device):
        if mode not in MODES:
            raise ConfigError(f"mixed_precision: {mode!r} is not one of {', '.join(MODES)}")
        if mode == "auto":
            old = device.type == "cuda" and not th.cuda.is_bf16_supported(including_emulation=False)
            mode = "fp16" if old else "bf16"
        if mode == "fp16" and device.type != "cuda":
            raise ConfigError("mixed_precision: fp16 needs CUDA; use bf16")
        self.enabled = mode != "off"
        self.device = device.type
        self.dtype = th.float16 if mode == "fp16" else th.bfloat16
        self.scalers: dict[int, th.amp.GradScaler] | None = {} if mode == "fp16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that losses are computed in."""
        if not self.enabled:
            return nullcontext()
        return th.autocast(self.device, dtype=self.dtype)

    def backward(self, loss: Tensor, optimizer: th.optim.Optimizer) -> None:
        """Gradients of `loss`, scaled where there is a scaler."""
        scaler = self._scaler(optimizer)
        scaled = loss if scaler is None else scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def gradient_norm(self, parameters: Iterable[Tensor], optimizer: th.optim.Optimizer) -> Tensor:
        """Euclidean norm of the gradients of all `parameters` together, without the scale.

        To be called between `backward` and `step`. Zero where a scaled gradient has overflown:
        `step` leaves it out, and that is no sign of trouble while the scale is being found.
        """
        scaler = self._scaler(optimizer)
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        return norm if scaler is None else th.where(th.isfinite(norm), norm, 0.0)

    def step(self, optimizer: th.optim.Optimizer) -> None:
        """Step, without the scale; not at all where a scaled gradient has overflown."""
        scaler = self._scaler(optimizer)
        if scaler is None:
            optimizer.step()
            return
        scaler.step(optimizer)
        scaler.update()

    def _scaler(self, optimizer: th.optim.Optimizer) -> th.amp.GradScaler | None:
        """One for each optimiser: their losses overflow at scales of their own."""
        if self.scalers is None:
            return None
        key = id(optimizer)
        if key not in self.scalers:
            self.scalers[key] = th.amp.GradScaler(self.device)
        return self.scalers[key]

    def state(self, optimizers: Iterable[th.optim.Optimizer]) -> list[dict[str, Any]]:
        """Scales of these optimisers, in their order, for `restore`."""
        if self.scalers is None:
            return []
        return [dict(self._scaler(one).state_dict()) for one in optimizers]  # type: ignore[union-attr]

    def restore(
        self, optimizers: Iterable[th.optim.Optimizer], states: list[dict[str, Any]]
    ) -> None:
        """Take what `state` gave."""
        for one, state in zip(optimizers, states, strict=False):
            scaler = self._scaler(one)
            if scaler is not None:
                scaler.load_state_dict(state)
