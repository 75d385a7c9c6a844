"""The configuration of a command: flags, environment variables, files, presets, defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finflow_sb3.config import Settings
from finflow_sb3.config_documents import presets, read_document
from finflow_sb3.config_keys import ALGORITHMS, SECTIONS, key_names, unknown
from finflow_sb3.config_layers import layer_of, resolved_layer, settings_of
from finflow_sb3.errors import ConfigError
from finflow_sb3.files import write_whole
from finflow_sb3.messages import remedy
from finflow_sb3.zoo_values import dump_yaml

__all__ = [
    "DEFAULT_ENV",
    "Resolved",
    "config_path",
    "diff",
    "named_config",
    "only_environment",
    "plain_yaml",
    "read_config",
    "resolve",
    "resolve_with_origins",
    "write_config",
]

DEFAULT_ENV = "finflow/US20-v0"
PACKAGED = "packaged"


@dataclass(frozen=True)
class Resolved:
    """Settings, and where each was written.

    Attributes
    ----------
    origins : by dotted name, as ``cqsac.gamma``, and ``env``: a flag, "--param ...", a variable,
        "file:line: entry", or "default"
    """

    settings: Settings
    origins: dict[str, str]


def resolve(
    env: str | None = None,
    *,
    algo: str | None,
    files: Sequence[Path] = (),
    preset: str | None = None,
    params: Sequence[str] = (),
    flags: Mapping[str, Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] = os.environ,
    base: Settings | None = None,
) -> Settings:
    """Settings for one environment, each from the first of these that names it.

    Flags, `params`, ``FINFLOW_*`` variables, `files` (the last first), `preset`, the packaged
    files, the dataclasses. A mapping such as ``policy_kwargs`` is replaced whole.

    Parameters
    ----------
    env : environment id, whose entries override ``default`` in every file; if not given, the
        only one that `files` name, else that of `base`, else finflow/US20-v0
    algo : one of `ALGORITHMS` or None; owner of bare keys that several sections have. For
        those of SB3, `config_arguments.algorithm_arguments` takes what is left out here.
    files : YAML files in RL-Zoo form; a later one overrides an earlier one
    preset : name in ``zoo_configs/presets.yml``
    params : "key:value" or "section.key:value"
    flags : values by section and name
    environ : environment variables, ``FINFLOW_KEY`` or ``FINFLOW_SECTION__KEY``
    base : settings in the place of the packaged files, as those of a run that this one goes on
        from

    Raises
    ------
    ConfigError
        If a key is unknown or ambiguous, a value of the wrong type or out of range, settings
        contradict each other, or a file cannot be read or says nothing on `env`.
    """
    return resolve_with_origins(
        env,
        algo=algo,
        files=files,
        preset=preset,
        params=params,
        flags=flags,
        environ=environ,
        base=base,
    ).settings


def resolve_with_origins(
    env: str | None = None,
    *,
    algo: str | None,
    files: Sequence[Path] = (),
    preset: str | None = None,
    params: Sequence[str] = (),
    flags: Mapping[str, Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] = os.environ,
    base: Settings | None = None,
) -> Resolved:
    """`resolve`, and where each value came from."""
    if algo is not None and algo not in ALGORITHMS:
        raise unknown("algorithm", algo, ALGORITHMS, "--algo")
    env, env_origin = _environment(env, files, environ, base)
    below = None if base is None else layer_of(base, "the run that this one goes on from")
    layer = resolved_layer(env, algo, below, preset, files, environ, params, flags or {})
    settings = settings_of(env, layer)
    names = [(section, name) for section in SECTIONS for name in key_names(section)]
    origins = {".".join(key): layer[key].where if key in layer else "default" for key in names}
    return Resolved(settings, {"env": env_origin, **origins})


def _environment(
    env: str | None, files: Sequence[Path], environ: Mapping[str, str], base: Settings | None
) -> tuple[str, str]:
    if env is not None:
        return env, "FINFLOW_ENV" if environ.get("FINFLOW_ENV") == env else "--env"
    only = only_environment(files)
    if only is not None:
        return only, ", ".join(str(path) for path in files)
    return (DEFAULT_ENV, "default") if base is None else (base.env, "the run")


def only_environment(files: Sequence[Path]) -> str | None:
    """The environment that `files` name if they name exactly one, else None."""
    ids = {name for path in files for name in read_document(path).environments()}
    return ids.pop() if len(ids) == 1 else None


def plain_yaml(settings: Settings) -> str:
    """Every setting as YAML under the environment's id; `resolve` reads it back unchanged."""
    plain = settings.as_dict()
    return dump_yaml({plain.pop("env"): plain})


def write_config(settings: Settings, path: Path) -> None:
    """Write `plain_yaml`, whole or not at all."""
    write_whole(path, plain_yaml(settings).encode())


def read_config(path: Path, algo: str | None = None) -> Settings:
    """Settings of a file that names one environment, as `write_config` writes it.

    Environment variables do not count.

    Parameters
    ----------
    algo : owner of bare keys that several sections have, as for `resolve`

    Raises
    ------
    ConfigError
        If the file cannot be read, is wrong, or names several environments.
    """
    document = read_document(path)
    ids = document.environments()
    if len(ids) > 1:
        listed = ", ".join(ids[:10])
        raise ConfigError(f"{path}: names {len(ids)} environments ({listed}); keep one")
    env = ids[0] if ids else DEFAULT_ENV
    return resolve(env, algo=document.algo or algo, files=[path], environ={})


def config_path(path: Path) -> Path:
    """The configuration that a path stands for: the file, or that of the run in the folder."""
    return path / "config.yml" if path.is_dir() else path


def named_config(name: str, algo: str | None = None) -> Settings:
    """Settings of a file, of a run's folder, of a preset, or the packaged ones ("packaged").

    Raises
    ------
    ConfigError
        If there is nothing of this name, or as `read_config` does.
    """
    path = Path(name)
    if path.exists():
        return read_config(config_path(path), algo)
    if name == PACKAGED or name in presets():
        preset = None if name == PACKAGED else name
        return resolve(algo=algo, preset=preset, environ={})
    known = [*presets(), PACKAGED]
    listed = f"give one, or {', '.join(known)}"
    raise ConfigError(f"{name}: no such file or run; {remedy(name, known, listed)}")


def diff(a: Settings, b: Settings) -> list[tuple[str, Any, Any]]:
    """Settings that differ: dotted name, value in `a`, value in `b`."""
    left, right = _flat(a), _flat(b)
    return [(key, left[key], right[key]) for key in left if left[key] != right[key]]


def _flat(settings: Settings) -> dict[str, Any]:
    plain = settings.as_dict()
    flat = {"env": plain.pop("env")}
    for section, values in plain.items():
        flat |= {f"{section}.{name}": value for name, value in values.items()}
    return flat
