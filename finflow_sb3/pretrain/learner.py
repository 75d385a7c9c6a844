"""What the offline phase asks of an algorithm, whichever it is."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import torch
from d3rlpy.torch_utility import unwrap_ddp_model
from torch import Tensor, nn
from torch.optim import Optimizer

from finflow_sb3.config import OfflineAlgorithm, OfflineSettings
from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.offline.transitions import TransitionBatch
from finflow_sb3.pretrain.modules import mini_batch

__all__ = ["ActorCriticLearner", "Learner", "sizes_of"]


class Learner(Protocol):
    """An algorithm with its networks and optimisers, ready for its next gradient step.

    Attributes
    ----------
    algo : its section of the settings, and how its runs and artefacts are called
    sizes, gate_scale : what its networks are built with
    """

    algo: ClassVar[OfflineAlgorithm]
    sizes: NetworkSizes
    gate_scale: float

    @property
    def experts(self) -> nn.Module:
        """The policy network: observations [B, D] → `PolicyOutput`."""
        ...

    def update_on(self, batch: TransitionBatch) -> dict[str, float]:
        """One gradient step. Gives the losses that it computed: a step need not have them all."""
        ...

    def losses_on(self, batch: TransitionBatch) -> dict[str, float]:
        """The losses of a step on a batch, without making it."""
        ...

    def torch_modules(self) -> dict[str, nn.Module]:
        """Every network by the name of its file in a checkpoint."""
        ...

    def optimizers(self) -> dict[str, Optimizer]:
        """Every optimiser by its name in a checkpoint."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """A copy of what was learned, under the artefact's names."""
        ...

    def go_on_from(self, step: int) -> None:
        """Count gradient steps from `step` on."""
        ...


class ActorCriticLearner:
    """`Learner` as far as d3rlpy's actor-critic algorithms share it; goes before d3rlpy's class.

    Attributes
    ----------
    losses : d3rlpy's name of a loss → its name in `metrics.jsonl`, in the order there
    """

    losses: ClassVar[dict[str, str]]
    _impl: Any
    _device: str
    _grad_step: int

    @property
    def modules(self) -> Any:
        """The networks and optimisers, as d3rlpy's implementation holds them."""
        assert self._impl is not None
        return self._impl._modules

    @property
    def experts(self) -> nn.Module:
        network: nn.Module = unwrap_ddp_model(self.modules.policy).experts
        return network

    def update_on(self, batch: TransitionBatch) -> dict[str, float]:
        """One update on a batch of tensors; losses are d3rlpy's."""
        assert self._impl is not None
        found = self._impl.update(mini_batch(batch, self._device, self.experts), self._grad_step)
        self._grad_step += 1
        return {ours: found[theirs] for theirs, ours in self.losses.items() if theirs in found}

    @torch.no_grad()
    def losses_on(self, batch: TransitionBatch) -> dict[str, float]:
        """d3rlpy's losses of one update, without it."""
        impl, mini = self._impl, mini_batch(batch, self._device, self.experts)
        self.modules.set_eval()
        critic = impl.compute_critic_loss(mini, impl.compute_target(mini))
        actor = impl.compute_actor_loss(mini, self.modules.policy(mini.observations))
        self.modules.set_train()
        found = {**vars(critic), **vars(actor)}
        return {ours: float(found[theirs]) for theirs, ours in self.losses.items()}

    def torch_modules(self) -> dict[str, nn.Module]:
        modules = self.modules.get_torch_modules()
        return {name: unwrap_ddp_model(module) for name, module in modules.items()}

    def optimizers(self) -> dict[str, Optimizer]:
        modules = self.modules
        return {"actor": modules.actor_optim.optim, "critic": modules.critic_optim.optim}

    def go_on_from(self, step: int) -> None:
        self._grad_step = step


def sizes_of(settings: OfflineSettings) -> NetworkSizes:
    """Sizes of the networks of an algorithm with these settings."""
    return NetworkSizes.from_kwargs(
        {
            "n_critics": settings.n_critics,
            "n_quantiles": settings.n_quantiles,
            **settings.policy_kwargs,
        }
    )
