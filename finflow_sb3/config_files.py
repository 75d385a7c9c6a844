"""The configuration of a command: flags, environment variables, files, presets, defaults."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finflow_sb3.config import Settings
from finflow_sb3.config_documents import (
    Document,
    Given,
    Layer,
    documents_for,
    entry_layer,
    packaged,
    presets,
    read_document,
)
from finflow_sb3.config_keys import (
    ALGORITHMS,
    PLAIN_ALGORITHMS,
    SECTIONS,
    check_key,
    find_key,
    from_text,
    unknown,
    written_params,
    written_variables,
)
from finflow_sb3.errors import ConfigError
from finflow_sb3.files import write_whole
from finflow_sb3.zoo_values import clean, dump_yaml

__all__ = [
    "DEFAULT_ENV",
    "diff",
    "only_environment",
    "plain_yaml",
    "read_config",
    "resolve",
    "write_config",
]

DEFAULT_ENV = "finflow/US20-v0"


def resolve(
    env: str = DEFAULT_ENV,
    *,
    algo: str | None,
    files: Sequence[Path] = (),
    preset: str | None = None,
    params: Sequence[str] = (),
    flags: Mapping[str, Mapping[str, Any]] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Settings for one environment, each from the first of these that names it.

    Flags, `params`, ``FINFLOW_*`` variables, `files` (the last first), `preset`, the packaged
    files, the dataclasses. A mapping such as ``policy_kwargs`` is replaced whole.

    Parameters
    ----------
    env : environment id, whose entries override ``default`` in every file
    algo : "iql", "cqsac", "sac", "tqc" or None; owner of bare keys that several sections have.
        For "sac" and "tqc", `config_arguments.algorithm_arguments` takes what is left out here.
    files : YAML files in RL-Zoo form; a later one overrides an earlier one
    preset : name in ``zoo_configs/presets.yml``
    params : "key:value" or "section.key:value"
    flags : values by section and name
    environ : environment variables, ``FINFLOW_KEY`` or ``FINFLOW_SECTION__KEY``

    Raises
    ------
    ConfigError
        If a key is unknown or ambiguous, a value of the wrong type or out of range, or a file
        cannot be read or says nothing on `env`.
    """
    if algo is not None and algo not in ALGORITHMS:
        raise unknown("algorithm", algo, ALGORITHMS, "--algo")
    layer: Layer = {}
    for document in _packaged_documents(algo):
        layer = _over(layer, _document_layer(document, env, algo))
    if preset is not None:
        layer = _over(layer, _preset_layer(preset))
    for path in files:
        layer = _over(layer, _file_layer(path, env, algo))
    layer = _over(layer, _text_layer(written_variables(environ), algo))
    layer = _over(layer, _text_layer(written_params(params), algo))
    layer = _over(layer, _flag_layer(flags or {}))
    return _settings(env, layer)


RIVALS = {
    "ent_coef": ("alpha_init",),
    "alpha_init": ("ent_coef",),
    "learning_rate": ("actor_lr", "critic_lr"),
    "cql_target_action_gap": ("cql_alpha_final",),
    "cql_alpha_final": ("cql_target_action_gap",),
}
"""Settings of CQSAC that say the same thing: the one that is written later counts."""


def _over(below: Layer, above: Layer) -> Layer:
    """`above` over `below`, without what `above` says in other words."""
    outdone = {
        ("cqsac", rival)
        for (section, name) in above
        if section == "cqsac"
        for rival in RIVALS.get(name, ())
        if ("cqsac", rival) not in above
    }
    return {key: item for key, item in below.items() if key not in outdone} | above


def _flag_layer(flags: Mapping[str, Mapping[str, Any]]) -> Layer:
    layer: Layer = {}
    for section, values in flags.items():
        for name, value in values.items():
            where = f"--{name.replace('_', '-')}"
            layer[check_key(section, name, where)] = Given(clean(name, value, where), where)
    return layer


def _packaged_documents(algo: str | None) -> list[Document]:
    names = ["iql", "cqsac", *([algo] if algo in PLAIN_ALGORITHMS else [])]
    return [packaged(name) for name in names]


def _document_layer(document: Document, env: str, algo: str | None) -> Layer:
    layer: Layer = {}
    for where, entry in document.chosen(env):
        layer |= entry_layer(entry, document.algo or algo, where)
    return layer


def _file_layer(path: Path, env: str, algo: str | None) -> Layer:
    layer: Layer = {}
    for document in documents_for(path, env):
        if document.algo in PLAIN_ALGORITHMS and algo not in (None, document.algo):
            raise ConfigError(
                f"{document.name}: is for {document.algo}, and this command runs {algo}; "
                "leave it out, or name another algorithm in it ('algo: cqsac')"
            )
        layer = _over(layer, _document_layer(document, env, algo))
    return layer


def _preset_layer(name: str) -> Layer:
    if name not in presets():
        raise unknown("preset", name, list(presets()), "--preset")
    return entry_layer(presets()[name], None, f"zoo_configs/presets.yml: {name}")


def _text_layer(texts: Iterable[tuple[str, str, str]], algo: str | None) -> Layer:
    layer: Layer = {}
    for name, text, where in texts:
        key = find_key(name, algo, where)
        if key is not None:
            layer[key] = Given(from_text(key, key[1], text, where), where)
    return layer


def _settings(env: str, layer: Layer) -> Settings:
    sections = {}
    for section, cls in SECTIONS.items():
        given = {name: item for (owner, name), item in layer.items() if owner == section}
        sections[section] = _section(section, cls, given)
    return Settings(env=env, **sections)


def _section(section: str, cls: Any, given: dict[str, Given]) -> Any:
    try:
        return cls(**{name: item.value for name, item in given.items()})
    except (ConfigError, OverflowError):
        # One at a time, to say where the culprit was written.
        for name, item in given.items():
            try:
                cls(**{name: item.value})
            except ConfigError as error:
                raise ConfigError(f"{item.where}: {section}.{error}") from None
            except OverflowError:
                raise ConfigError(f"{item.where}: {section}.{name}: is too large") from None
        raise


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


def read_config(path: Path) -> Settings:
    """Settings of a file that names one environment, as `write_config` writes it.

    Environment variables do not count.

    Raises
    ------
    ConfigError
        If the file cannot be read, is wrong, or names several environments.
    """
    ids = read_document(path).environments()
    if len(ids) > 1:
        raise ConfigError(f"{path}: names {len(ids)} environments ({', '.join(ids)}); keep one")
    return resolve(ids[0] if ids else DEFAULT_ENV, algo=None, files=[path], environ={})


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
