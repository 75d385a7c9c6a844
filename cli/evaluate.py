"""`finflow evaluate`: backtest a run on its test split, and write the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.ensembles import Combine, RunFolders, Shrink
from finflow_sb3.cli.options import Shared, shared_options
from finflow_sb3.cli.runs import refuse_flags
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.config import EvaluationSettings

__all__ = ["command"]


@shared_options
def command(
    shared: Shared,
    runs: RunFolders,
    combine: Combine = None,
    shrink: Shrink = None,
) -> None:
    """Backtest a run's best policy on its test split, beside the rules it has to beat.

    Several runs act as one, and are shown one by one beside it.

    The run's own settings hold; --prices takes a newer history of the same assets, --param and
    --config what it is compared with, as -p evaluation.index:SPY.
    """
    why = "a run is evaluated with its own config.yml, but for prices and the section evaluation"
    refuse_flags(why, shared, {}, keep=("prices", "config", "param"))

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.pipeline import evaluate

    with watching() as watch:
        evaluated = evaluate(runs, shared.prices, watch, _evaluation(runs, shared), combine, shrink)
    if shared.json:
        print_json(evaluated)
    else:
        from finflow_sb3.cli.results import show_evaluated

        show_evaluated(evaluated)


def _evaluation(runs: list[Path], shared: Shared) -> EvaluationSettings | None:
    """The run's section with what --param and --config change in it; None without either.

    Raises
    ------
    ConfigError
        If they change anything else.
    """
    if not (shared.param or shared.config):
        return None
    from finflow_sb3.config_files import resolve
    from finflow_sb3.ensembles import members_of
    from finflow_sb3.runs.folder import RunFolder

    own = RunFolder.open(members_of(runs)[0]).settings()
    files, params = shared.config or [], shared.param or []
    found = resolve(algo=None, base=own, files=files, params=params, environ={})
    before, after = own.flat(), found.flat()
    for name in after:
        if after[name] != before[name] and not name.startswith("evaluation."):
            raise ConfigError(
                f"{name}: a run is evaluated with what it was trained with; only settings of "
                "evaluation can change"
            )
    return found.evaluation
