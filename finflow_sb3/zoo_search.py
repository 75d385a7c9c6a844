"""CQSAC's search space for the zoo's `-optimize`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Trial

__all__ = ["convert_cqsac_params", "sample_cqsac_params"]

# Widths of the five experts and of critics over tokens, and of perceptrons.
_EXPERTS: dict[str, dict[str, Any]] = {
    "small": {"expert_hidden": 8, "gate_hidden": 16, "token_hidden": 16, "critic_hidden": [64, 64]},
    "medium": {
        "expert_hidden": 16,
        "gate_hidden": 32,
        "token_hidden": 32,
        "critic_hidden": [128, 128],
    },
    "big": {
        "expert_hidden": 32,
        "gate_hidden": 64,
        "token_hidden": 64,
        "critic_hidden": [256, 256],
    },
}
_PERCEPTRONS: dict[str, dict[str, Any]] = {
    "small": {"net_arch": [64, 64]},
    "medium": {"net_arch": [256, 256]},
    "big": {"net_arch": [400, 300]},
}


def sample_cqsac_params(
    trial: Trial,
    n_actions: int,
    n_envs: int,
    additional_args: dict[str, Any],
    experts: bool = True,
) -> dict[str, Any]:
    """Arguments of `CQSAC` for one trial, in the form of the zoo's own samplers.

    Parameters
    ----------
    n_actions, n_envs : given by the zoo, not used
    additional_args : the zoo's; a trial of a HER buffer has its settings sampled too
    experts : whether the policy is `MultiExpertPolicy`, whose widths have names of their own
    """
    sampled = {
        "alpha_init": trial.suggest_float("alpha_init", 1e-3, 1.0, log=True),
        "cql_share": trial.suggest_float("cql_share", 0.01, 0.8, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True),
        "actor_lr_ratio": trial.suggest_float("actor_lr_ratio", 0.1, 1.0, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 10),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-3, 0.2, log=True),
        "tau": trial.suggest_float("tau", 1e-3, 0.05, log=True),
        "n_quantiles_pow": trial.suggest_int("n_quantiles_pow", 3, 6),
        "net": trial.suggest_categorical("net", list(_EXPERTS)),
    }
    arguments = convert_cqsac_params(sampled, experts)
    for name in ("ent_coef", "cql_alpha", "actor_lr", "batch_size", "gamma", "policy_kwargs"):
        trial.set_user_attr(name, arguments[name])
    if additional_args.get("using_her_replay_buffer"):
        from rl_zoo3.hyperparams_opt import sample_her_params

        sample_her_params(trial, arguments, additional_args["her_kwargs"])
    return arguments


def convert_cqsac_params(params: dict[str, Any], experts: bool = True) -> dict[str, Any]:
    """What Optuna keeps of a trial as arguments of `CQSAC`.

    α_cql is sampled as a share of N/2, above which the penalty wins over the quantile loss, and
    falls to a fifth as in the packaged file. A target gap, which would take its place, is off.
    """
    n_quantiles = 2 ** params["n_quantiles_pow"]
    cql_alpha = params["cql_share"] * n_quantiles / 2
    widths = (_EXPERTS if experts else _PERCEPTRONS)[params["net"]]
    return {
        "ent_coef": f"auto_{params['alpha_init']}",
        "cql_alpha": cql_alpha,
        "cql_alpha_final": cql_alpha / 5,
        "cql_target_action_gap": None,
        "learning_rate": params["learning_rate"],
        "actor_lr": params["learning_rate"] * params["actor_lr_ratio"],
        "batch_size": 2 ** params["batch_size_pow"],
        "gamma": 1 - params["one_minus_gamma"],
        "tau": params["tau"],
        "policy_kwargs": {"n_quantiles": n_quantiles, **widths},
    }
