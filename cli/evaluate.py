"""`finflow evaluate`: backtest a run on its test split, and write the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.ensembles import Combine, RunFolders, Shrink
from finflow_sb3.cli.options import Shared, only_shared
from finflow_sb3.cli.runs import refuse_flags
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.config import Settings

__all__ = ["command"]

MAY_CHANGE = ("evaluation.", "market.partial")


@only_shared("prices", "config", "param")
def command(
    shared: Shared,
    runs: RunFolders,
    combine: Combine = None,
    shrink: Shrink = None,
) -> None:
    """Backtest a run's best policy on its test split, beside the rules it has to beat.

    Several runs act as one, and are shown one by one beside it.

    The run's own settings hold. --prices takes a newer history of the same assets, or any other
    universe, --param and --config what it is compared with, as -p evaluation.index:SPY.
    """
    why = "a run is evaluated with its own config.yml, but for prices and the section evaluation"
    refuse_flags(why, shared, {}, keep=("prices", "config", "param"))

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.pipeline import evaluate

    with watching() as watch:
        changed = _changed(runs, shared)
        evaluated = evaluate(
            runs,
            shared.prices,
            watch,
            None if changed is None else changed.evaluation,
            combine,
            shrink,
            None if changed is None else changed.market.partial,
        )
    if shared.json:
        print_json(evaluated)
    else:
        from finflow_sb3.cli.results import show_evaluated

        show_evaluated(evaluated)


def _changed(runs: list[Path], shared: Shared) -> Settings | None:
    """The run's settings with what --param and --config change in them; None without either.

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
        if after[name] != before[name] and not name.startswith(MAY_CHANGE):
            raise ConfigError(
                f"{name}: a run is evaluated with what it was trained with; only settings of "
                "evaluation and market.partial can change"
            )
    return found
