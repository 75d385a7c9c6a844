"""Portfolio allocation for Stable-Baselines3: offline IQL or TD3+BC seeds an online CQSAC.

Public names are resolved when they are first used, so that ``import finflow_sb3`` (and with it
``finflow --help``) loads neither torch nor pandas.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finflow_sb3.allocate import allocate
    from finflow_sb3.allocation.holdings import Holdings
    from finflow_sb3.backtest_rules import backtest_baselines
    from finflow_sb3.benchmark.run import benchmark
    from finflow_sb3.config import Settings
    from finflow_sb3.config_files import resolve
    from finflow_sb3.cqsac.cqsac import CQSAC
    from finflow_sb3.deployment.onnx_file import export_onnx
    from finflow_sb3.ensemble_training import continue_ensemble, train_ensemble
    from finflow_sb3.ensembles import load_policies
    from finflow_sb3.envs.portfolio import PortfolioEnv
    from finflow_sb3.envs.vec import PortfolioVecEnv
    from finflow_sb3.exchange import export_zip, import_zip
    from finflow_sb3.explain.period import explain_period
    from finflow_sb3.explain.run import explain
    from finflow_sb3.market.prices import PriceTable
    from finflow_sb3.market.sources import load_prices
    from finflow_sb3.offline.describe import describe
    from finflow_sb3.offline.export import export_dataset
    from finflow_sb3.offline.formats import read_plain
    from finflow_sb3.offline.own_rules import Past
    from finflow_sb3.pipeline import collect, evaluate, finetune, pretrain, train
    from finflow_sb3.plain_training import train_plain
    from finflow_sb3.plot_runs import plot_runs as plot
    from finflow_sb3.pretrain.plain import load_plain_policy
    from finflow_sb3.profiling import profile
    from finflow_sb3.resuming import resume, resume_collecting, resume_pretraining
    from finflow_sb3.runs.snapshot import take_snapshot
    from finflow_sb3.tuning.study import tune
    from finflow_sb3.walkforward import walkforward

    __version__: str

__all__ = [
    "CQSAC",
    "Holdings",
    "Past",
    "PortfolioEnv",
    "PortfolioVecEnv",
    "PriceTable",
    "Settings",
    "__version__",
    "allocate",
    "backtest_baselines",
    "benchmark",
    "collect",
    "continue_ensemble",
    "describe",
    "evaluate",
    "explain",
    "explain_period",
    "export_dataset",
    "export_onnx",
    "export_zip",
    "finetune",
    "import_zip",
    "load_plain_policy",
    "load_policies",
    "load_prices",
    "plot",
    "pretrain",
    "profile",
    "read_plain",
    "resolve",
    "resume",
    "resume_collecting",
    "resume_pretraining",
    "take_snapshot",
    "train",
    "train_ensemble",
    "train_plain",
    "tune",
    "walkforward",
]

_HOMES = {
    "CQSAC": "cqsac.cqsac",
    "Holdings": "allocation.holdings",
    "Past": "offline.own_rules",
    "PortfolioEnv": "envs.portfolio",
    "PortfolioVecEnv": "envs.vec",
    "PriceTable": "market.prices",
    "Settings": "config",
    "allocate": "allocate",
    "backtest_baselines": "backtest_rules",
    "benchmark": "benchmark.run",
    "collect": "pipeline",
    "continue_ensemble": "ensemble_training",
    "describe": "offline.describe",
    "evaluate": "pipeline",
    "explain": "explain.run",
    "explain_period": "explain.period",
    "export_dataset": "offline.export",
    "export_onnx": "deployment.onnx_file",
    "export_zip": "exchange",
    "finetune": "pipeline",
    "import_zip": "exchange",
    "load_plain_policy": "pretrain.plain",
    "load_policies": "ensembles",
    "load_prices": "market.sources",
    "plot": "plot_runs",
    "pretrain": "pipeline",
    "profile": "profiling",
    "read_plain": "offline.formats",
    "resolve": "config_files",
    "resume": "resuming",
    "resume_collecting": "resuming",
    "resume_pretraining": "resuming",
    "take_snapshot": "runs.snapshot",
    "train": "pipeline",
    "train_ensemble": "ensemble_training",
    "tune": "tuning.study",
    "walkforward": "walkforward",
    "train_plain": "plain_training",
}
_OWN_NAMES = {"plot": "plot_runs"}
"""Public names that are called otherwise at home, where they would say too little."""

if not TYPE_CHECKING:  # a type checker would take any misspelt name for one of Any

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from finflow_sb3._version import installed_version

            value: Any = installed_version()
        elif name in _HOMES:
            home = import_module(f"finflow_sb3.{_HOMES[name]}")
            value = getattr(home, _OWN_NAMES.get(name, name))
        else:
            raise AttributeError(f"module 'finflow_sb3' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps a verb from being hidden by the sub-package of the same name.

    Importing ``finflow_sb3.pretrain.iql`` makes Python set ``finflow_sb3.pretrain`` to the
    sub-package; the public name must stay the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
