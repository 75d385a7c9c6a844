"""The policy network without a market: one perceptron, parameter by parameter SB3's own."""

from __future__ import annotations

from torch import Tensor, nn

from finflow_sb3.nets.experts import PolicyOutput
from finflow_sb3.nets.hidden import perceptron
from finflow_sb3.network_sizes import NetworkSizes

__all__ = ["PerceptronPolicy"]

# Those of SB3's SAC: seeding `MlpPolicy` with this network is exact.
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class PerceptronPolicy(nn.Module):
    """Hidden layers of the widths `sizes.critic_hidden`, then linear heads for mean and log σ."""

    def __init__(self, obs_size: int, action_size: int, sizes: NetworkSizes):
        super().__init__()
        widths = list(sizes.critic_hidden)
        self.latent_pi = perceptron(obs_size, widths, sizes.regularisation, nn.ReLU)
        self.mu = nn.Linear(widths[-1], action_size)
        self.log_std = nn.Linear(widths[-1], action_size)

    def view(self, obs: Tensor) -> Tensor:
        """Observations as they are: there is nothing to take apart."""
        return obs

    def forward(self, obs: Tensor) -> PolicyOutput:
        hidden = self.latent_pi(obs)
        log_std = self.log_std(hidden).clamp(LOG_STD_MIN, LOG_STD_MAX)
        return PolicyOutput(self.mu(hidden), log_std)
