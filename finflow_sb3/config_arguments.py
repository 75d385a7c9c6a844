"""Arguments of SB3's own algorithms, from the same files and overrides as the settings."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from finflow_sb3.config_documents import documents_for, packaged
from finflow_sb3.config_files import DEFAULT_ENV
from finflow_sb3.config_keys import (
    SECTIONS,
    find_key,
    from_text,
    key_names,
    unknown,
    written_params,
    written_variables,
)
from finflow_sb3.errors import ConfigError
from finflow_sb3.zoo_values import clean

__all__ = ["algorithm_arguments"]

_ZOO_ARGUMENTS = ("n_timesteps", "n_envs", "normalize", "policy")
# Without type hints to go by: 1e6 is a float to YAML, and SB3 takes no float here.
_WHOLE = (
    "batch_size",
    "buffer_size",
    "gradient_steps",
    "learning_starts",
    "n_envs",
    "n_steps",
    "n_timesteps",
    "target_update_interval",
    "top_quantiles_to_drop_per_net",
    "train_freq",
)
_SETTINGS = {name for section in SECTIONS for name in key_names(section)}


def algorithm_arguments(
    algo: str,
    env: str = DEFAULT_ENV,
    *,
    known: Collection[str],
    files: Sequence[Path] = (),
    params: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Keyword arguments of a plain SB3 algorithm, from its packaged file and what overrides it.

    Takes what `resolve` leaves out for the same `algo`: flat keys of files, and bare keys of
    `params` and `environ` that are not settings of market, env_kwargs or run.

    Parameters
    ----------
    algo : "sac" or "tqc"
    env, files, params, environ : as for `resolve`
    known : names of the arguments that the algorithm takes. ``n_timesteps``, ``n_envs``,
        ``normalize`` and ``policy`` may stand in the file besides, for the caller.

    Returns
    -------
    dict
        By name. Schedules are text, activations in ``policy_kwargs`` their bare names.

    Raises
    ------
    ConfigError
        If a key is unknown or a file cannot be read.
    """
    names = list(dict.fromkeys([*_ZOO_ARGUMENTS, *known]))
    arguments = _packaged_and_files(algo, env, names, files)
    for text_key, text, where in written_variables(environ):
        # What is exported for every command may name another algorithm's setting.
        if _argument(text_key, algo) in names or _argument(text_key, algo) not in _SETTINGS:
            arguments |= _from_text(algo, names, text_key, text, where)
    for text_key, text, where in written_params(params):
        arguments |= _from_text(algo, names, text_key, text, where)
    return arguments


def _packaged_and_files(
    algo: str, env: str, names: Sequence[str], files: Sequence[Path]
) -> dict[str, Any]:
    documents = [packaged(algo)]
    for path in files:
        documents += [d for d in documents_for(path, env) if d.algo in (None, algo)]
    arguments = {}
    for document in documents:
        for where, entry in document.chosen(env):
            for name in entry:
                if name in SECTIONS:
                    continue
                if name not in names:
                    raise unknown(f"setting of {algo}", name, names, where)
                arguments[name] = _whole(name, clean(name, entry[name], where), where)
    return arguments


def _argument(text_key: str, algo: str) -> str:
    return text_key.removeprefix(f"{algo}.")


def _from_text(
    algo: str, names: Sequence[str], text_key: str, text: str, where: str
) -> dict[str, Any]:
    if find_key(text_key, algo, where) is not None:
        return {}
    name = _argument(text_key, algo)
    if name not in names:
        raise unknown(f"setting of {algo}", name, names, where)
    return {name: _whole(name, from_text(None, name, text, where), where)}


def _whole(name: str, value: Any, where: str) -> Any:
    if name not in _WHOLE or not isinstance(value, (float, str, bool)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ConfigError(f"{where}: {name}: {value!r} is not a whole number")
