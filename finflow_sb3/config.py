"""Frozen settings of every stage, with their ranges.

Each default is neutral or the method's own; `zoo_configs/` sets what was chosen on validation
splits. Files, environment variables and precedence are in `config_files.py`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from finflow_sb3 import config_forms as forms
from finflow_sb3.checks import CHECKS, Action, Level, complete_actions, complete_bounds
from finflow_sb3.config_callbacks import known_callbacks
from finflow_sb3.config_checks import check_settings, known_environment
from finflow_sb3.config_evaluation import EvaluationSettings
from finflow_sb3.config_fields import Checked, setting
from finflow_sb3.config_policies import known_policy
from finflow_sb3.config_trading import by_asset, group_limits, groups
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import remedy, shown
from finflow_sb3.zoo_values import schedule

__all__ = [
    "ANCHORS",
    "BEHAVIOURS",
    "OFFLINE_ALGORITHMS",
    "CQSACSettings",
    "CollectSettings",
    "EnvSettings",
    "EvaluationSettings",
    "IQLSettings",
    "MarketSettings",
    "MonitorSettings",
    "OfflineAlgorithm",
    "OfflineSettings",
    "RunSettings",
    "Settings",
    "TD3BCSettings",
]

ANCHORS = ("volatility", "correlation", "momentum", "defensive", "growth")
BEHAVIOURS = (
    "anchor",
    "mixture",
    "gate_walk",
    "momentum_tilt",
    "contrarian",
    "equal_weight",
    "buy_and_hold",
    "cash_heavy",
)
OfflineAlgorithm = Literal["iql", "td3bc"]
"""Algorithms of the offline phase; each has the section of its name."""
OFFLINE_ALGORITHMS: tuple[OfflineAlgorithm, ...] = get_args(OfflineAlgorithm)


@dataclass(frozen=True)
class MarketSettings(Checked):
    """Where prices come from, how they are split, and how the anchors are fitted."""

    prices: str = setting(
        "us20", "us20, a file (CSV, CSV.gz, Parquet) or yahoo:SYMBOL,...", form=forms.not_empty
    )
    max_gap: int = setting(5, "longest gap in days that is forward-filled", 0, 60)
    partial: bool = setting(False, "let assets start or end inside the data; else that is refused")
    train_end: str | None = setting(
        None, "last day of the training split (else train_fraction)", form=forms.date
    )
    validation_end: str | None = setting(None, "last day of the validation split", form=forms.date)
    train_start: str | None = setting(
        None, "first day of the training split (else the first usable one)", form=forms.date
    )
    test_end: str | None = setting(
        None, "last day of the test split (else the last there is)", form=forms.date
    )
    train_fraction: float = setting(0.6, "share of the usable days for training", 0.05, 0.95)
    validation_fraction: float = setting(0.15, "share for validation", 0.01, 0.9)
    anchor_refit: int = setting(21, "days between refits of the anchors", 1, 252)
    anchor_window: int = setting(756, "trailing days that a refit sees", 63, 5040)
    anchor_min_window: int = setting(252, "trailing days that the first refit needs", 63, 2520)
    anchor_target_volatility: float = setting(0.12, "annual, of the defensive anchor", 0.001, 1.0)
    anchor_cap: float = setting(0.2, "largest weight of the growth anchor", 0.001, 1.0)


@dataclass(frozen=True)
class EnvSettings(Checked):
    """Keyword arguments of `PortfolioEnv` and `PortfolioVecEnv` (`env_kwargs` in YAML)."""

    action_base: Literal["anchors", "drift", "none"] = setting("anchors", "what an action moves")
    trade_rate: float | None = setting(
        None, "share of the way to the target that is traded; 0.1 for anchors, else 1", 1e-4, 1.0
    )
    gate_scale: float = setting(5.0, "κ_g: logits of a gate at its corner", 0.01, 20.0)
    tilt_scale: float = setting(0.5, "κ_t: log-ratio of a tilt at its corner", 0.0, 20.0)
    drift_scale: float = setting(0.1, "κ of action_base drift", 0.001, 20.0)
    softmax_scale: float = setting(5.0, "κ of action_base none", 0.01, 20.0)
    fee: float = setting(0.001, "proportional fee on traded value (10 bps = 0.001)", 0.0, 0.2)
    fees: dict[str, Any] = setting({}, "fee by asset, where it is not `fee`", form=by_asset(0, 0.2))
    ticket: float = setting(0.0, "fixed fee in money for each asset traded", 0.0, 1e9)
    minimum_fee: float = setting(0.0, "least proportional fee in money for each", 0.0, 1e9)
    slippage: Literal["none", "linear", "square_root", "exponential"] = setting(
        "none", "how the price moves against a trade, in the asset's daily volatility"
    )
    slippage_scale: float = setting(1.0, "volatilities that a day's whole volume costs", 0.0, 10.0)
    impact: float = setting(0.0, "price concession at a day's whole volume, linear below", 0.0, 0.2)
    liquidity_window: int = setting(21, "trailing days of volume and volatility for both", 2, 252)
    capital: float | None = setting(None, "initial value in money", 1e-6, 1e15)
    cash_rate: float | None = setting(
        None, "annual interest on cash, where the prices have none", -0.5, 2.0
    )
    execution_lag: int = setting(0, "0 trades at the close of the decision, 1 at the next", 0, 1)
    no_trade_band: float = setting(0.0, "changes of weight below it are left out", 0.0, 0.5)
    max_turnover: float | None = setting(None, "largest turnover a day", 0.0, 2.0)
    max_position: float | dict[str, Any] | None = setting(
        None, "largest weight that purchases reach, or by asset", 0.0, 1.0, by_asset(0.0, 1.0)
    )
    min_position: float | dict[str, Any] = setting(
        0.0, "smallest weight of every asset, or by asset", 0.0, 1.0, by_asset(0.0, 1.0)
    )
    groups: dict[str, Any] = setting({}, "assets by group", form=groups)
    group_limits: dict[str, Any] = setting({}, "[least, most] weight by group", form=group_limits)
    reward: Literal["log_return", "differential_sharpe"] = setting("log_return", "reward")
    reward_baseline: Literal["equal_weight", "none"] = setting(
        "equal_weight", "whose log return is subtracted"
    )
    lambda_turn: float = setting(0.0, "penalty on turnover", 0.0, 1000.0)
    lambda_cvar: float = setting(0.0, "penalty on net returns below cvar_target", 0.0, 1000.0)
    cvar_target: float = setting(-0.02, "daily return below which the shortfall counts", -1.0, 0.0)
    lambda_dd: float = setting(0.0, "penalty on increases of the drawdown", 0.0, 1000.0)
    sharpe_decay: float = setting(0.004, "η of the differential Sharpe ratio", 1e-5, 0.5)
    episode_length: int = setting(252, "days", 1, 100_000)
    initial_weights: Literal["random", "equal", "anchors"] = setting("random", "at reset")
    asset_dropout: float = setting(
        0.0, "chance of each asset to be left out of a training episode's universe", 0.0, 0.9
    )
    ruin: float = setting(0.1, "an episode ends when value falls to this share of its start", 0, 1)


@dataclass(frozen=True)
class CollectSettings(Checked):
    """Offline data: which rules trade, and how often."""

    episodes: int = setting(1000, "episodes", 1, 10_000_000)
    n_envs: int = setting(64, "portfolios in the batch", 1, 100_000)
    behaviours: tuple[str, ...] = setting(
        BEHAVIOURS,
        "rules, drawn in equal shares",
        form=forms.names_among(BEHAVIOURS, "--behaviour"),
    )
    noise: float = setting(0.1, "standard deviation of the noise around each action", 0.0, 1.0)


@dataclass(frozen=True)
class OfflineSettings(Checked):
    """What every algorithm of the offline phase has."""

    epochs: int = setting(50, "epochs", 1, 100_000)
    steps_per_epoch: int = setting(100, "gradient steps in an epoch", 1, 1_000_000)
    batch_size: int = setting(512, "transitions in a batch", 2, 1_000_000)
    gamma: float = setting(0.99, "discount", 0.0, 1.0)
    tau: float = setting(0.005, "target network rate", 0.0, 1.0)
    actor_lr: float = setting(3e-4, "learning rate of the policy", 0.0, 1.0)
    critic_lr: float = setting(3e-4, "learning rate of the critics, and of V", 0.0, 1.0)
    n_critics: int = setting(2, "critics", 1, 20)
    n_quantiles: int = setting(32, "quantiles a critic", 1, 1000)
    balance_coef: float = setting(0.01, "weight of the gate's load balancing", 0.0, 100.0)
    prior_coef: float = setting(0.0, "pull of the policy towards the zero action", 0.0, 1000.0)
    fqe_epochs: int = setting(
        0,
        "best epochs on validation that fitted Q evaluation judges at the end; 0 is none",
        0,
        1000,
    )
    fqe_steps: int = setting(1000, "gradient steps of that for each of them", 1, 10_000_000)
    policy_kwargs: dict[str, Any] = setting({}, "sizes of the networks")


@dataclass(frozen=True)
class IQLSettings(OfflineSettings):
    """Implicit Q-learning (Kostrikov et al. 2021) through d3rlpy."""

    expectile: float = setting(0.7, "τ of the expectile regression", 0.5, 0.999)
    weight_temp: float = setting(3.0, "β in exp(β·A), the paper's inverse temperature", 0.0, 1000.0)
    max_weight: float = setting(100.0, "largest advantage weight", 0.1, 1e6)


@dataclass(frozen=True)
class TD3BCSettings(OfflineSettings):
    """TD3+BC (Fujimoto and Gu 2021) through d3rlpy."""

    alpha: float = setting(2.5, "α in λ = α/mean|Q|, the weight of Q against cloning", 0.0, 1000.0)
    target_smoothing_sigma: float = setting(0.2, "noise on the target's action", 0.0, 10.0)
    target_smoothing_clip: float = setting(0.5, "where that noise is clipped", 0.0, 2.0)
    update_actor_interval: int = setting(2, "steps between two updates of the policy", 1, 1000)


@dataclass(frozen=True)
class CQSACSettings(Checked):
    """Online fine-tuning: CQSAC's arguments and the hand-over."""

    n_timesteps: int = setting(252_000, "environment steps, over all portfolios", 1, 10**10)
    n_envs: int = setting(16, "portfolios in the batch", 1, 100_000)
    normalize: bool | dict[str, Any] = setting(False, "VecNormalize; not of portfolios")
    callback: tuple[Any, ...] = setting(
        (), "SB3's callbacks by name, with arguments as a mapping", form=known_callbacks
    )
    policy: str = setting("MultiExpertPolicy", "policy class", form=known_policy)
    policy_kwargs: dict[str, Any] = setting({}, "sizes of the networks")
    learning_rate: float | str = setting(
        3e-4, "a number or a schedule such as lin_3e-4", form=schedule
    )
    actor_lr: float | None = setting(None, "where it differs from learning_rate", 0.0, 1.0)
    critic_lr: float | None = setting(None, "where it differs from learning_rate", 0.0, 1.0)
    buffer_size: int = setting(50_000, "transitions kept", 1, 10**9)
    learning_starts: int = setting(100, "steps before the first update", 0, 10**9)
    batch_size: int = setting(256, "transitions in a batch", 2, 10**6)
    tau: float = setting(0.005, "target network rate", 0.0, 1.0)
    gamma: float = setting(0.99, "discount", 0.0, 1.0)
    train_freq: int = setting(1, "batch steps between updates", 1, 10**6)
    gradient_steps: int = setting(1, "updates at a time", -1, 10**6)
    utd_ratio: int = setting(1, "critic updates for each gradient step", 1, 1000)
    policy_delay: int = setting(1, "gradient steps for each update of the policy", 1, 1000)
    n_steps: int = setting(1, "steps of a return before the bootstrap", 1, 1000)
    risk_measure: str = setting(
        "neutral", "neutral, cvar:<level>, wang:<strength>", form=forms.risk_measure
    )
    obs_noise_std: float = setting(0.0, "noise on the observations of each batch", 0.0, 10.0)
    ent_coef: str | float = setting("auto", "entropy coefficient, SB3's forms", form=forms.ent_coef)
    alpha_init: float | None = setting(None, "short for ent_coef auto_<alpha_init>", 1e-6, 100.0)
    target_entropy: str | float = setting(
        "auto", "auto, seeded (from the seeded policy), a number", form=forms.target_entropy
    )
    top_quantiles_to_drop_per_net: int = setting(2, "as in TQC", 0, 999)
    cql_alpha: float = setting(0.0, "weight of the conservative penalty", 0.0, 1000.0)
    cql_alpha_final: float | None = setting(None, "its value at the end (linear)", 0.0, 1000.0)
    cql_target_action_gap: float | None = setting(
        None, "gap that a Lagrange multiplier α holds the penalty at", -1e6, 1e6
    )
    cql_n_actions: int = setting(4, "sampled actions from each of three sources", 1, 100)
    cql_batch_size: int | None = setting(
        None, "states of each batch that the penalty is computed on; all if null", 1, 10**6
    )
    cql_temperature: float = setting(1.0, "T of the logsumexp", 0.001, 100.0)
    cal_ql: bool = setting(False, "floor of policy samples at the pretrained value")
    backup_entropy: bool = setting(True, "entropy bonus in the target")
    balance_coef: float = setting(0.0, "weight of the gate's load balancing", 0.0, 100.0)
    prior_coef: float = setting(0.0, "pull of the policy towards the zero action", 0.0, 1000.0)
    warmup_steps: int = setting(0, "steps with the seeded policy before the first update", 0, 10**9)
    offline_fraction: float = setting(0.0, "share of each batch from the offline data", 0.0, 1.0)
    compile: Literal["off", "auto", "on"] = setting("off", "compile the update; auto if it pays")
    mixed_precision: Literal["off", "auto", "bf16", "fp16"] = setting(
        "off", "16-bit products; auto is bf16, or fp16 on CUDA without it"
    )
    gradient_checkpointing: bool = setting(False, "less memory for more time in an update")
    prefetch: bool = setting(False, "gather the next batch in a thread")


@dataclass(frozen=True)
class RunSettings(Checked):
    """What every command shares."""

    seed: int = setting(0, "seed of everything", 0, 2**31 - 1)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N", form=forms.device)
    threads: int | Literal["auto"] = setting(
        "auto", "torch threads; auto is one for small networks, all cores for wide ones", 1, 1024
    )
    log_dir: str = setting("logs", "where runs are written", form=forms.not_empty)
    checkpoint_interval: int = setting(100, "episodes between checkpoints", 1, 10**9)
    evaluate_interval: int = setting(50, "episodes between validation backtests", 1, 10**9)
    save_best: bool = setting(True, "keep the checkpoint that was best on validation")
    save_latest: bool = setting(
        True, "write a checkpoint at each interval, not only of the best and at a stop"
    )
    max_checkpoints: int = setting(5, "checkpoints kept", 1, 10**6)
    log_interval: int = setting(2000, "environment steps between lines of metrics.jsonl", 1, 10**9)
    tensorboard: bool = setting(True, "write TensorBoard events")
    track: Literal["off", "wandb", "mlflow"] = setting("off", "tracker that runs are sent to")


@dataclass(frozen=True)
class MonitorSettings(Checked):
    """What fine-tuning is watched for, and what follows a warning. `checks.CHECKS` has the checks.

    The three mappings are by check and complete: what is not given is the check's default.
    """

    enabled: bool = setting(True, "watch fine-tuning; off makes no check at all")
    on_warning: dict[str, Action] = setting({}, "by check: off, warn, cut_lr, rollback or stop")
    warning_limits: dict[str, float] = setting({}, "by check: beyond it is a warning")
    normal_limits: dict[str, float] = setting({}, "by check: up to it a figure is normal")
    reward_window: int = setting(2000, "rewards that reward_outlier compares with", 10, 10**6)
    cut_factor: float = setting(0.5, "learning rates are multiplied by it at a cut", 0.001, 0.999)
    max_rollbacks: int = setting(3, "rollbacks, after which the run stops instead", 0, 10**6)
    cooldown: int = setting(5000, "steps between two events of the same check", 0, 10**9)
    patience: int | None = setting(
        None, "validations without improvement before an early stop; null is never", 1, 10**6
    )
    min_improvement: float = setting(0.0, "of the Sharpe ratio, to count as one", 0.0, 100.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        normal, limits = complete_bounds(self.normal_limits, self.warning_limits)
        object.__setattr__(self, "on_warning", complete_actions(self.on_warning))
        object.__setattr__(self, "normal_limits", normal)
        object.__setattr__(self, "warning_limits", limits)

    def level(self, check: str, value: float) -> Level:
        """Whether a figure is `ok`, a `notice` or a `warning`; NaN and infinity are a warning."""
        fixed = CHECKS[check]
        normal = self.normal_limits.get(check, fixed.normal)
        return fixed.level(value, normal, self.warning_limits.get(check, fixed.limit))


@dataclass(frozen=True)
class Settings:
    """The resolved configuration of a command, as it is written beside its result.

    Raises
    ------
    ConfigError
        If the environment is unknown, or settings contradict each other.
    """

    env: str = "finflow/US20-v0"
    market: MarketSettings = field(default_factory=MarketSettings)
    env_kwargs: EnvSettings = field(default_factory=EnvSettings)
    collect: CollectSettings = field(default_factory=CollectSettings)
    iql: IQLSettings = field(default_factory=IQLSettings)
    td3bc: TD3BCSettings = field(default_factory=TD3BCSettings)
    cqsac: CQSACSettings = field(default_factory=CQSACSettings)
    run: RunSettings = field(default_factory=RunSettings)
    monitor: MonitorSettings = field(default_factory=MonitorSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        known_environment(self.env)
        check_settings(self)

    def offline(self, algo: OfflineAlgorithm) -> OfflineSettings:
        """The section of an algorithm of the offline phase."""
        sections = {"iql": self.iql, "td3bc": self.td3bc}
        if algo not in sections:
            raise ConfigError(f"algo: {shown(algo)} is not known; {remedy(algo, list(sections))}")
        return sections[algo]

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for YAML and JSON."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    def flat(self) -> dict[str, bool | int | float | str]:
        """One level, as in ``{"cqsac.gamma": 0.99}``; what is not plain is written as JSON."""
        found: dict[str, bool | int | float | str] = {}
        for section, content in self.as_dict().items():
            named = content if isinstance(content, dict) else {"": content}
            for name, value in named.items():
                plain = isinstance(value, (bool, int, float, str))
                found[f"{section}.{name}".rstrip(".")] = value if plain else json.dumps(value)
        return found

    def replace(self, **changes: dict[str, Any]) -> Settings:
        """A copy with single settings changed: ``replace(cqsac={"gamma": 0.9})``."""
        sections = {
            name: dataclasses.replace(getattr(self, name), **values)
            for name, values in changes.items()
        }
        return dataclasses.replace(self, **sections)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
