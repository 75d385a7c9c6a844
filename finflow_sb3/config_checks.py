"""What settings say about each other: contradictions, refused, and surprises, noted.

The range of one setting stands beside it in `config.py`.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from finflow_sb3.config_policies import EXPERTS, check_policy_kwargs
from finflow_sb3.config_trading import trading_faults
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import remedy, shown

if TYPE_CHECKING:
    from finflow_sb3.config import CQSACSettings, MarketSettings, Settings

__all__ = [
    "ENVIRONMENTS",
    "Contradiction",
    "check_settings",
    "dropping_fault",
    "is_portfolio",
    "known_environment",
    "multiplier_fault",
    "notes",
]

ENVIRONMENTS = ("finflow/US20-v0", "finflow/Portfolio-v0")
_NAMESPACE = "finflow/"
# sb3-contrib's default, where policy_kwargs do not say.
_QUANTILES = 25

Fault = tuple[tuple[str, ...], str]
"""The settings that contradict each other, and why."""


class Contradiction(ConfigError):
    """Settings that contradict each other.

    Attributes
    ----------
    names : the settings, as ``cqsac.batch_size``
    """

    def __init__(self, names: tuple[str, ...], reason: str):
        super().__init__(f"{names[0]}: {reason}")
        self.names = names


def is_portfolio(env: str) -> bool:
    """Whether an environment is ours: one of these, or a name for another universe."""
    return env.startswith(_NAMESPACE)


def known_environment(env: str) -> str:
    """`env`, refused where it is one of ours misspelt.

    Raises
    ------
    ConfigError
        Naming the nearest that there is.
    """
    if env in ENVIRONMENTS:
        return env
    near = difflib.get_close_matches(env[:100], ENVIRONMENTS, n=1, cutoff=0.75)
    if near or any(name.endswith(f"/{env}") for name in ENVIRONMENTS):
        raise ConfigError(f"unknown environment {shown(env)}; {remedy(env, ENVIRONMENTS)}")
    return env


def check_settings(settings: Settings) -> None:
    """Refuse settings that contradict each other.

    Raises
    ------
    Contradiction
        For the first one found.
    """
    for names, reason in _faults(settings):
        raise Contradiction(names, reason)


def _faults(settings: Settings) -> Iterator[Fault]:
    yield from _market_faults(settings.market)
    for names, reason in trading_faults(settings.env_kwargs):
        yield tuple(f"env_kwargs.{name}" for name in names), reason
    yield from _policy_faults(settings)
    pretrained = max(settings.iql.n_quantiles, settings.td3bc.n_quantiles)
    yield from _cqsac_faults(settings.cqsac, pretrained)
    found = settings.evaluation
    if found.index is not None and "index" not in found.baselines:
        yield (
            ("evaluation.index", "evaluation.baselines"),
            f"{shown(found.index)} is given, but baselines leave index out; add it to them",
        )


def _market_faults(market: MarketSettings) -> Iterator[Fault]:
    in_order = ("train_start", "train_end", "validation_end", "test_end")
    given = [(name, getattr(market, name)) for name in in_order if getattr(market, name)]
    for (name, first), (later, last) in itertools.pairwise(given):
        if first >= last:
            names = (f"market.{name}", f"market.{later}")
            yield names, f"{first} must lie before {later} {last}"
    if not (market.train_end and market.validation_end) and (
        market.train_fraction + market.validation_fraction >= 1.0
    ):
        yield (
            ("market.train_fraction", "market.validation_fraction"),
            f"{market.train_fraction} and validation_fraction {market.validation_fraction} leave "
            "nothing to test on; their sum must be under 1",
        )
    if market.anchor_min_window > market.anchor_window:
        yield (
            ("market.anchor_min_window", "market.anchor_window"),
            f"{market.anchor_min_window} is over anchor_window {market.anchor_window}; lower it",
        )


def _policy_faults(settings: Settings) -> Iterator[Fault]:
    cqsac = settings.cqsac
    for section, policy, kwargs in (
        ("iql", EXPERTS, settings.iql.policy_kwargs),
        ("td3bc", EXPERTS, settings.td3bc.policy_kwargs),
        ("cqsac", cqsac.policy, cqsac.policy_kwargs),
    ):
        try:
            check_policy_kwargs(section, policy, kwargs)
        except ConfigError as error:
            name, _, reason = str(error).partition(": ")
            of = f"{reason} (of {policy})"
            yield (f"{section}.{name}", *(["cqsac.policy"] if section == "cqsac" else [])), of
    if not is_portfolio(settings.env):
        return
    if cqsac.policy in ("CnnPolicy", "MultiInputPolicy"):
        yield (
            ("cqsac.policy",),
            f"{cqsac.policy} is for images or Dict observations, and portfolios have flat ones; "
            f"use {EXPERTS} or MlpPolicy",
        )
    if cqsac.normalize:
        yield (
            ("cqsac.normalize",),
            "observations are scaled by the market's own scaler, which travels with every "
            "artefact; set it to false",
        )


def _cqsac_faults(cqsac: CQSACSettings, pretrained: int) -> Iterator[Fault]:
    fault = multiplier_fault(cqsac.cql_alpha, cqsac.cql_alpha_final, cqsac.cql_target_action_gap)
    if fault is not None:
        names = ("cqsac.cql_target_action_gap", "cqsac.cql_alpha_final", "cqsac.cql_alpha")
        yield names, fault
    # Experts that are seeded have the pretrained number, whatever stands here.
    default = max(_QUANTILES, pretrained) if cqsac.policy == EXPERTS else _QUANTILES
    quantiles = cqsac.policy_kwargs.get("n_quantiles", default)
    fault = dropping_fault(cqsac.top_quantiles_to_drop_per_net, quantiles)
    if fault is not None:
        yield ("cqsac.top_quantiles_to_drop_per_net", "cqsac.policy_kwargs"), fault
    if cqsac.alpha_init is not None and cqsac.ent_coef != "auto":
        yield (
            ("cqsac.alpha_init", "cqsac.ent_coef"),
            f"{cqsac.alpha_init} is short for ent_coef auto_{cqsac.alpha_init}, and ent_coef is "
            f"{cqsac.ent_coef}; give one of the two",
        )
    for name in ("batch_size", "n_envs"):
        size = getattr(cqsac, name)
        if size > cqsac.buffer_size:
            yield (
                (f"cqsac.{name}", "cqsac.buffer_size"),
                f"{size} is over buffer_size {cqsac.buffer_size}; lower it, or keep more",
            )
    if cqsac.offline_fraction > 0.0 and round(cqsac.offline_fraction * cqsac.batch_size) == 0:
        yield (
            ("cqsac.offline_fraction", "cqsac.batch_size"),
            f"{cqsac.offline_fraction} of a batch of {cqsac.batch_size} is no transition at all; "
            "raise it, or set it to 0",
        )


def multiplier_fault(alpha: float, final: float | None, gap: float | None) -> str | None:
    """Why α_cql cannot be a Lagrange multiplier, or None."""
    if gap is not None and (alpha <= 0.0 or final is not None):
        return "needs a cql_alpha over 0 to start from, and no cql_alpha_final"
    return None


def dropping_fault(dropped: int, n_quantiles: int) -> str | None:
    """Why so many quantiles cannot be dropped of each network, or None."""
    if 0 <= dropped < n_quantiles:
        return None
    return f"{dropped} must lie between 0 and n_quantiles − 1 ({n_quantiles - 1})"


def notes(settings: Settings) -> list[str]:
    """Settings that are valid and may surprise, a sentence each."""
    cqsac, env = settings.cqsac, settings.env_kwargs
    found = []
    for name in ("learning_starts", "warmup_steps"):
        steps = getattr(cqsac, name)
        if steps >= cqsac.n_timesteps:
            found.append(
                f"cqsac.{name}: {steps} of {cqsac.n_timesteps} steps pass before the first update"
            )
    final = cqsac.cql_alpha_final
    if final is not None and final > cqsac.cql_alpha:
        found.append(f"cqsac.cql_alpha: the penalty rises from {cqsac.cql_alpha} to {final}")
    penalties = [name for name in ("turn", "cvar", "dd") if getattr(env, f"lambda_{name}")]
    if env.reward == "differential_sharpe" and penalties:
        names = ", ".join(f"lambda_{name}" for name in penalties)
        found.append(f"env_kwargs.reward: differential_sharpe has no penalties ({names})")
    return found
