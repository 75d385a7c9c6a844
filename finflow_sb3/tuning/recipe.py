"""A trial as a file for `-c`, and the command that trains with it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finflow_sb3.config import OFFLINE_ALGORITHMS, Settings
from finflow_sb3.config_arguments import algorithm_arguments, checked_arguments
from finflow_sb3.config_files import diff, read_config, resolve
from finflow_sb3.config_keys import PLAIN_ALGORITHMS
from finflow_sb3.config_layers import RIVALS
from finflow_sb3.files import write_whole
from finflow_sb3.messages import one_line
from finflow_sb3.run_notes import run_of
from finflow_sb3.tuning.spaces import Values, with_values
from finflow_sb3.tuning.storage import without_password
from finflow_sb3.tuning.trials import TrialPlan
from finflow_sb3.zoo_values import dump_yaml

__all__ = ["training_command", "write_recipe"]


def write_recipe(
    path: Path, title: str, plan: TrialPlan, settings: Settings, values: Values, tried: int
) -> None:
    """Write all that makes a trial's training differ from one with nothing given.

    Parameters
    ----------
    title : what stands above it
    settings : that the trials started from
    tried : a best of many looks better than it is; the deflated Sharpe ratio has to know of how
        many
    """
    own, arguments = with_values(settings, values, plan.algo, plan.arguments)
    own = own.replace(evaluation={"trials": tried})
    content: dict[str, Any] = _differing(own, _starts(plan, own))
    algo = {}
    if plan.algo in PLAIN_ALGORITHMS:
        usual = checked_arguments(plan.algo, algorithm_arguments(plan.algo, own.env, environ={}))
        content |= {name: value for name, value in arguments.items() if value != usual[name]}
        algo = {"algo": plan.algo}
    head = "".join(f"# {one_line(line)}\n" for line in (title, _called()) if line)
    write_whole(path, f"{head}{dump_yaml({**algo, own.env: content})}".encode())


def _starts(plan: TrialPlan, own: Settings) -> list[Settings]:
    """What the file is laid over: the packaged settings, or those of the pretrained run."""
    starts = [resolve(own.env, algo=plan.algo, environ={})]
    if plan.pretrained is not None:
        noted = run_of(plan.pretrained) / "config.yml"
        starts += [read_config(noted)] if noted.is_file() else []
    return starts


def _differing(own: Settings, starts: Sequence[Settings]) -> dict[str, Any]:
    names = {name for start in starts for name, _, _ in diff(own, start)}
    # Written alone, a setting undoes those that say the same in other words.
    rivals = {
        f"cqsac.{rival}"
        for name in names
        if name.startswith("cqsac.")
        for rival in RIVALS.get(name.removeprefix("cqsac."), ())
    }
    content: dict[str, Any] = {}
    for section, values in own.as_dict().items():
        if section != "env":
            chosen = {k: v for k, v in values.items() if f"{section}.{k}" in names | rivals}
            content |= {section: chosen} if chosen else {}
    return content


def _called() -> str:
    """The command line that is at work, without what nobody else may read."""
    if "finflow" not in sys.argv[0]:
        return ""
    return shlex.join(["finflow", *map(_readable, sys.argv[1:])])


def _readable(word: str) -> str:
    flag, mark, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{mark}{without_password(value)}" if "://" in value else word


def training_command(plan: TrialPlan, path: Path) -> str:
    """The command that trains with such a file as the trial did."""
    file = shlex.quote(str(path))
    if plan.pretrained is not None:
        return f"finflow finetune --pretrained {shlex.quote(str(plan.pretrained))} -c {file}"
    if plan.algo in OFFLINE_ALGORITHMS:
        return f"finflow pretrain --algo {plan.algo} -c {file}"
    flag = "" if plan.algo == "cqsac" else f"--algo {plan.algo} "
    return f"finflow train {flag}-c {file}"
