"""Ids for `gymnasium.make`, registered through gymnasium's plugin entry point."""

from __future__ import annotations

__all__ = ["register_envs"]

ENTRY_POINT = "finflow_sb3.envs.portfolio:PortfolioEnv"


def register_envs() -> None:
    """Register `finflow/US20-v0` and `finflow/Portfolio-v0`."""
    from gymnasium.envs.registration import register, registry

    for name in ("finflow/US20-v0", "finflow/Portfolio-v0"):
        if name not in registry:
            register(id=name, entry_point=ENTRY_POINT)
