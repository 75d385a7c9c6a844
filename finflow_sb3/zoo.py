"""rl-baselines3-zoo with CQSAC: ``python -m finflow_sb3.zoo train --algo cqsac ...``.

The installed `rl_zoo3` does the work, with its own command line. What is added to it: CQSAC and
its search space, our environments, and options put before the user's, which win over them.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finflow_sb3.config_arguments import plain_arguments
from finflow_sb3.config_checks import is_portfolio
from finflow_sb3.config_export import zoo_yaml
from finflow_sb3.config_files import resolve
from finflow_sb3.config_keys import PLAIN_ALGORITHMS
from finflow_sb3.errors import ConfigError, FinflowError, MissingExtraError
from finflow_sb3.messages import one_line, remedy
from finflow_sb3.quiet import silence_gym_notice
from finflow_sb3.zoo_search import convert_cqsac_params, sample_cqsac_params
from finflow_sb3.zoo_values import parse_yaml

__all__ = ["main", "register", "run"]

PLOTS = ("plot_train", "all_plots", "plot_from_file")
SCRIPTS = ("train", "enjoy", *PLOTS)
USAGE = f"""usage: python -m finflow_sb3.zoo {{{",".join(SCRIPTS)}}} ...

rl-baselines3-zoo's scripts with --algo cqsac; each takes the zoo's options (try `train --help`)."""

# At import: the processes of --vec-env subproc import this module too, and then `gym`.
silence_gym_notice()


def run(script: str, words: Sequence[str]) -> None:
    """Run one of the zoo's scripts with CQSAC and our environments.

    Settings of `cqsac`, `sac` and `tqc` are those that ``finflow config export --zoo`` writes,
    unless `words` name a file. The zoo's evaluations of our environments take place on the
    validation split, with the training's other ``env_kwargs``, unless `words` name others.

    Parameters
    ----------
    script : "train", "enjoy", "plot_train", "all_plots" or "plot_from_file"
    words : its command line, as the zoo takes it

    Raises
    ------
    MissingExtraError
        Without rl_zoo3, or seaborn for the plots.
    ConfigError
        If there is no such script, or nothing says how to set the algorithm.
    """
    if script not in SCRIPTS:
        raise ConfigError(f"zoo: no script {script!r}; {remedy(script, SCRIPTS)}")
    _require("rl_zoo3", script)
    if script in PLOTS:
        _require("seaborn", script)
    given = _given(words)
    with tempfile.TemporaryDirectory(prefix="finflow-zoo-") as folder:
        ahead = _options_ahead(script, given, Path(folder))
        register(experts=_has_experts(given, ahead))
        module = importlib.import_module(
            "rl_zoo3.plots" if script in PLOTS else f"rl_zoo3.{script}"
        )
        words = _folder_names(words) if script in PLOTS else words
        before = sys.argv
        sys.argv = [f"finflow_sb3.zoo {script}", *ahead, *words]
        try:
            getattr(module, script)()
        finally:
            sys.argv = before


def register(experts: bool = True) -> None:
    """Make CQSAC, its search space and our environments known to the installed zoo.

    Parameters
    ----------
    experts : whether trials are of `MultiExpertPolicy`, or of a policy of perceptrons
    """
    from rl_zoo3 import ALGOS
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    from finflow_sb3.cqsac.cqsac import CQSAC
    from finflow_sb3.envs.registration import register_envs

    register_envs()
    ALGOS["cqsac"] = CQSAC
    HYPERPARAMS_SAMPLER["cqsac"] = functools.partial(sample_cqsac_params, experts=experts)
    HYPERPARAMS_CONVERTER["cqsac"] = functools.partial(convert_cqsac_params, experts=experts)


def _require(package: str, script: str) -> None:
    if find_spec(package) is None:
        raise MissingExtraError(
            f'zoo {script}: needs {package}; run: pip install "finflow-sb3[zoo]"'
        )


def _given(words: Sequence[str]) -> argparse.Namespace:
    """What the user's command line says of algorithm, environment and settings."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("-conf", "--conf-file", default=None)
    parser.add_argument("-params", "--hyperparams", nargs="*", default=[])
    parser.add_argument("--env-kwargs", nargs="*", default=[])
    parser.add_argument("--eval-env-kwargs", nargs="*", default=[])
    parser.add_argument("-h", "--help", action="store_true")
    return parser.parse_known_args(words)[0]


# ------------------------------------------------------------------ options put before the user's


def _options_ahead(script: str, given: argparse.Namespace, folder: Path) -> list[str]:
    if given.help or script in PLOTS:
        return []
    if script == "enjoy":
        # Our environments draw nothing, and nobody keeps agents of theirs for the zoo to find.
        return ["--no-render", "--folder", "logs"] if is_portfolio(given.env) else []
    options: list[str] = []
    if given.conf_file is None:
        path = _write_settings(given, folder)
        if path is None:
            return options
        options = ["--conf-file", str(path)]
        given.conf_file = str(path)
    if is_portfolio(given.env) and not given.eval_env_kwargs:
        # The zoo takes the file's env_kwargs for training alone.
        options += ["--eval-env-kwargs", *_evaluation_words(given)]
    return options


def _write_settings(given: argparse.Namespace, folder: Path) -> Path | None:
    """The file that ``finflow config export --zoo`` writes, or None where the zoo has its own."""
    algo, env = given.algo, given.env
    if algo != "cqsac" and not is_portfolio(env):
        return None
    if algo != "cqsac" and algo not in PLAIN_ALGORITHMS:
        raise ConfigError(f"zoo train: no settings of {algo} for {env}; name a file: --conf-file")
    plain = plain_arguments(algo, env) if algo in PLAIN_ALGORITHMS else None
    exported = zoo_yaml(resolve(env, algo=algo), algo, plain)
    for name, value in exported.left_out.items():
        print(one_line(f"not in the zoo's format: {name} = {value}"), file=sys.stderr)
    path = folder / f"{algo}.yml"
    path.write_text(exported.text, encoding="utf-8")
    return path


def _evaluation_words(given: argparse.Namespace) -> list[str]:
    kwargs = _entry(given).get("env_kwargs")
    words = given.env_kwargs or [
        f"{name}:{value!r}" for name, value in (kwargs if isinstance(kwargs, dict) else {}).items()
    ]
    return [*(word for word in words if not word.startswith("split:")), "split:'validation'"]


def _entry(given: argparse.Namespace) -> dict[str, Any]:
    """What the settings file has for the environment; the zoo's Python files are not looked into.

    The zoo reads the file after this, and says what is wrong with it.
    """
    path = Path(given.conf_file or "")
    if path.suffix not in (".yml", ".yaml") or not path.is_file():
        return {}
    content = parse_yaml(path.read_text("utf-8"), str(path))
    if not isinstance(content, dict):
        return {}
    entry = content.get(given.env, content.get("default"))
    return entry if isinstance(entry, dict) else {}


def _has_experts(given: argparse.Namespace, ahead: list[str]) -> bool:
    """Whether the policy is `MultiExpertPolicy`, by -params or the settings file."""
    named = [word for word in given.hyperparams if word.startswith("policy:")]
    policy = named[-1] if named else str(_entry(given).get("policy"))
    return policy.strip("'\"").endswith("MultiExpertPolicy")


def _folder_names(words: Sequence[str]) -> list[str]:
    """Ids of environments as the zoo's folders have them: it looks for what it is given there."""
    return [word.replace("/", "-") if is_portfolio(word) else word for word in words]


def main() -> None:
    """Entry point of ``python -m finflow_sb3.zoo``."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if words else 2)
    try:
        run(words[0], words[1:])
    except FinflowError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
