"""Arguments of SB3's own algorithms, from the same files and overrides as the settings."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finflow_sb3.config_checks import dropping_fault, is_portfolio
from finflow_sb3.config_documents import Given, Where, documents_for, packaged
from finflow_sb3.config_fields import check_given
from finflow_sb3.config_files import DEFAULT_ENV
from finflow_sb3.config_keys import (
    SECTIONS,
    find_keys,
    from_text,
    key_names,
    unknown,
    written_params,
    written_variables,
)
from finflow_sb3.config_layers import places
from finflow_sb3.config_plain import PLAIN, ZOO_KEYS
from finflow_sb3.config_policies import check_policy_kwargs
from finflow_sb3.errors import ConfigError
from finflow_sb3.zoo_values import clean, plain

__all__ = ["PlainArguments", "algorithm_arguments", "checked_arguments", "plain_arguments"]

_SETTINGS = {name for section in SECTIONS for name in key_names(section)}
_QUANTILES = 25


@dataclass(frozen=True)
class PlainArguments:
    """What is configured for a plain SB3 algorithm.

    Attributes
    ----------
    arguments : of its constructor, and the zoo's `n_timesteps`, `n_envs`, `normalize`, `policy`,
        `noise_type`, `noise_std` and, for an environment that is not ours, `env_kwargs`
    unused : keys of the zoo that nothing here acts on, such as `env_wrapper`
    origins : where each of both was written
    """

    arguments: dict[str, Any]
    unused: dict[str, Any]
    origins: dict[str, str]


def algorithm_arguments(
    algo: str,
    env: str = DEFAULT_ENV,
    *,
    files: Sequence[Path] = (),
    params: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Keyword arguments of a plain SB3 algorithm, from its packaged file and what overrides it.

    Takes what `resolve` leaves out for the same `algo`: flat keys of files, and bare keys of
    `params` and `environ` that are no settings of the sections that all algorithms share. The
    packaged file counts for our own environments alone.

    Parameters
    ----------
    algo : one of `config_plain.PLAIN`
    env, files, params, environ : as for `resolve`

    Returns
    -------
    dict
        By name. Schedules are text, activations in ``policy_kwargs`` their bare names.
        ``n_timesteps``, ``n_envs``, ``normalize``, ``policy``, ``env_kwargs``, ``noise_type`` and
        ``noise_std`` may stand among them, for the caller.

    Raises
    ------
    ConfigError
        If a key is unknown, a value wrong, or a file cannot be read.
    """
    return plain_arguments(algo, env, files=files, params=params, environ=environ).arguments


def plain_arguments(
    algo: str,
    env: str = DEFAULT_ENV,
    *,
    files: Sequence[Path] = (),
    params: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> PlainArguments:
    """`algorithm_arguments`, with the zoo's other keys and where all were written."""
    given = _packaged_and_files(algo, env, files)
    names = _names(algo)
    for text_key, text, where in written_variables(environ):
        # What is exported for every command may name another algorithm's setting.
        if _argument(text_key, algo) in names or _argument(text_key, algo) not in _SETTINGS:
            given |= _from_text(algo, text_key, text, where)
    for text_key, text, where in written_params(params):
        given |= _from_text(algo, text_key, text, where)
    _check_together(algo, given)
    return PlainArguments(
        {name: item.value for name, item in given.items() if name not in ZOO_KEYS},
        {name: item.value for name, item in given.items() if name in ZOO_KEYS},
        {name: item.where for name, item in given.items()},
    )


def checked_arguments(algo: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of a plain SB3 algorithm: those `given`, checked, over SB3's own defaults.

    Parameters
    ----------
    given : by name, as `algorithm_arguments` returns them

    Raises
    ------
    ConfigError
        If one is unknown or wrong, or two contradict each other.
    """
    items = {
        name: Given(_checked(algo, name, value, "arguments"), "arguments")
        for name, value in given.items()
    }
    _check_together(algo, items)
    full = PLAIN[algo](**{name: item.value for name, item in items.items()})
    return {item.name: getattr(full, item.name) for item in dataclasses.fields(full)}


def _names(algo: str) -> list[str]:
    return [*(item.name for item in dataclasses.fields(PLAIN[algo])), *ZOO_KEYS]


def _packaged_and_files(algo: str, env: str, files: Sequence[Path]) -> dict[str, Given]:
    documents = [packaged(algo)] if is_portfolio(env) else []
    for path in files:
        documents += [d for d in documents_for(path, env) if d.algo in (None, algo)]
    given: dict[str, Given] = {}
    for document in documents:
        for where, entry in document.chosen(env):
            given |= _from_entry(algo, env, entry, where)
    return given


def _from_entry(algo: str, env: str, entry: dict[str, Any], where: Where) -> dict[str, Given]:
    given = {}
    for name, value in entry.items():
        if name in SECTIONS and (name != "env_kwargs" or is_portfolio(env)):
            continue
        given[name] = Given(_checked(algo, name, value, where(name)), where(name))
    return given


def _argument(text_key: str, algo: str) -> str:
    return text_key.removeprefix(f"{algo}.")


def _from_text(algo: str, text_key: str, text: str, where: str) -> dict[str, Given]:
    if find_keys(text_key, algo, where):
        return {}
    name = _argument(text_key, algo)
    return {name: Given(_checked(algo, name, from_text(None, name, text, where), where), where)}


def _checked(algo: str, name: str, value: Any, where: str) -> Any:
    names = _names(algo)
    if name not in names:
        keys = find_keys(name, algo, where)
        if keys:
            raise ConfigError(
                f"{where}: unknown setting {name!r} of {algo}; it belongs under {keys[0][0]!r}"
            )
        raise unknown(f"setting of {algo}", name, names, where)
    value = clean(name, value, where)
    try:
        if name in ZOO_KEYS:
            return _kept(name, value)
        return check_given(PLAIN[algo], {name: value}, "argument")[name]
    except ConfigError as error:
        raise ConfigError(f"{where}: {algo}.{error}") from None


def _kept(name: str, value: Any) -> Any:
    try:
        return plain(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _check_noise(algo: str, given: dict[str, Given]) -> None:
    """Noise has a type and a width, or is not there at all."""
    kind, std = given.get("noise_type"), given.get("noise_std")
    named, wide = kind is not None and kind.value is not None, std is not None and std.value > 0.0
    if named == wide:
        return
    where = places([item for item in (kind, std) if item is not None])
    missing, has = ("noise_std", "noise_type") if named else ("noise_type", "noise_std")
    remedy = "noise_std:0.1" if named else "noise_type:normal"
    raise ConfigError(f"{where}{algo}.{has}: has no effect without {missing}; give {remedy}")


def _check_together(algo: str, given: dict[str, Given]) -> None:
    """Refuse arguments that contradict each other."""
    _check_noise(algo, given)
    if "policy_kwargs" not in given:
        return
    kwargs = given["policy_kwargs"]
    policy = given["policy"].value if "policy" in given else "MlpPolicy"
    try:
        check_policy_kwargs(algo, policy, kwargs.value)
    except ConfigError as error:
        raise ConfigError(f"{kwargs.where}: {algo}.{error}") from None
    dropped = given.get("top_quantiles_to_drop_per_net")
    if dropped is not None:
        fault = dropping_fault(dropped.value, kwargs.value.get("n_quantiles", _QUANTILES))
        if fault is not None:
            where = places([dropped, kwargs])
            raise ConfigError(f"{where}{algo}.top_quantiles_to_drop_per_net: {fault}")
