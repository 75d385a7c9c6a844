"""Layers of settings, one for each source, and how they lie over each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finflow_sb3.config import OFFLINE_ALGORITHMS, Settings
from finflow_sb3.config_checks import Contradiction, is_portfolio
from finflow_sb3.config_documents import (
    Document,
    Given,
    Layer,
    documents_for,
    entry_layer,
    packaged,
    preset_layer,
)
from finflow_sb3.config_keys import (
    PLAIN_ALGORITHMS,
    SECTIONS,
    check_key,
    find_keys,
    from_text,
    key_names,
    written_params,
    written_variables,
)
from finflow_sb3.errors import ConfigError
from finflow_sb3.zoo_values import clean

__all__ = ["RIVALS", "layer_of", "places", "resolved_layer", "settings_of"]

RIVALS = {
    "ent_coef": ("alpha_init",),
    "alpha_init": ("ent_coef",),
    "learning_rate": ("actor_lr", "critic_lr"),
    "cql_target_action_gap": ("cql_alpha_final",),
    "cql_alpha_final": ("cql_target_action_gap",),
}
"""Settings of CQSAC that say the same thing: the one that is written later counts."""

_PACKAGED = "zoo_configs/"


def resolved_layer(
    env: str,
    algo: str | None,
    base: Layer | None,
    preset: str | None,
    files: Sequence[Path],
    environ: Mapping[str, str],
    params: Sequence[str],
    flags: Mapping[str, Mapping[str, Any]],
) -> Layer:
    """What all sources set together, each value from the first in the order of `resolve`."""
    layer = _packaged_layer(env, algo) if base is None else base
    if preset is not None:
        layer = _over(layer, preset_layer(preset))
    for path in files:
        layer = _over(layer, _file_layer(path, env, algo))
    layer = _over(layer, _text_layer(written_variables(environ), algo))
    layer = _over(layer, _text_layer(written_params(params), algo))
    return _over(layer, _flag_layer(flags))


def layer_of(settings: Settings, where: str) -> Layer:
    """Every setting, as if it had been written at `where`."""
    return {
        (section, name): Given(getattr(getattr(settings, section), name), where)
        for section in SECTIONS
        for name in key_names(section)
    }


def settings_of(env: str, layer: Layer) -> Settings:
    """The settings of a layer, errors with the place where they were written."""
    sections = {}
    for section, cls in SECTIONS.items():
        given = {name: item for (owner, name), item in layer.items() if owner == section}
        sections[section] = _section(section, cls, given)
    try:
        return Settings(env=env, **sections)
    except Contradiction as error:
        keys = {tuple(name.split(".", 1)) for name in error.names}
        where = places([item for key, item in layer.items() if key in keys])
        raise ConfigError(f"{where}{error}") from None
    except ConfigError as error:
        raise ConfigError(f"--env: {error}") from None


def _section(section: str, cls: Any, given: dict[str, Given]) -> Any:
    try:
        return cls(**{name: item.value for name, item in given.items()})
    except ConfigError as reason:
        # One at a time, to say where the culprit was written.
        for name, item in given.items():
            try:
                cls(**{name: item.value})
            except ConfigError as error:
                raise ConfigError(f"{item.where}: {section}.{error}") from None
        # They contradict each other; the message starts with the name of one.
        named = [item for name, item in given.items() if re.match(rf"{name}\b", str(reason))]
        raise ConfigError(f"{places(named)}{section}.{reason}") from None


def places(given: Sequence[Given]) -> str:
    """Where values that contradict each other were written, for the start of a message: the
    user's own places, else the packaged ones.
    """
    every = list(dict.fromkeys(item.where for item in given))
    own = [where for where in every if not where.startswith(_PACKAGED)]
    return f"{' and '.join(own or every)}: " if every else ""


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


def _packaged_layer(env: str, algo: str | None) -> Layer:
    layer: Layer = {}
    # What is packaged for SB3's own algorithms was chosen for portfolios.
    plain = [algo] if algo in PLAIN_ALGORITHMS and is_portfolio(env) else []
    for name in [*OFFLINE_ALGORITHMS, "cqsac", *plain]:
        layer = _over(layer, _document_layer(packaged(name), env, algo))
    return layer


def _document_layer(document: Document, env: str, algo: str | None) -> Layer:
    layer: Layer = {}
    owner = document.algo or algo
    for where, entry in document.chosen(env):
        # Arguments of an environment that is not ours: `config_arguments` hands them on.
        foreign = owner in PLAIN_ALGORITHMS and not is_portfolio(env)
        names = [name for name in entry if not (foreign and name == "env_kwargs")]
        layer |= entry_layer({name: entry[name] for name in names}, owner, where)
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


def _text_layer(texts: Iterable[tuple[str, str, str]], algo: str | None) -> Layer:
    layer: Layer = {}
    for name, text, where in texts:
        for key in find_keys(name, algo, where):
            layer[key] = Given(from_text(key, key[1], text, where), where)
    return layer


def _flag_layer(flags: Mapping[str, Mapping[str, Any]]) -> Layer:
    layer: Layer = {}
    for section, values in flags.items():
        for name, value in values.items():
            where = f"--{name.replace('_', '-')}"
            layer[check_key(section, name, where)] = Given(clean(name, value, where), where)
    return layer
