"""RL-Zoo style YAML documents: settings by environment, one document built on another."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from finflow_sb3.config_keys import (
    ALGORITHMS,
    PLAIN_ALGORITHMS,
    SECTIONS,
    Key,
    check_key,
    find_key,
    unknown,
)
from finflow_sb3.errors import ConfigError
from finflow_sb3.zoo_values import clean, parse_call, parse_yaml

__all__ = [
    "Document",
    "Given",
    "Layer",
    "documents_for",
    "entry_layer",
    "packaged",
    "presets",
    "read_document",
]

_ENV_ID = re.compile(r"(?:[\w:-]+/)?[\w:.-]+?-v\d+|[\w:-]+/[\w:.-]+")
# Holds shared settings for `<<: *anchor` in the zoo's files, and is no environment.
_TEMPLATE = re.compile(r".+-defaults")


@dataclass(frozen=True)
class Given:
    """A value and where it was written, for messages."""

    value: Any
    where: str


Layer = dict[Key, Given]
"""What one source of settings sets."""


@dataclass(frozen=True)
class Document:
    """One YAML file.

    Attributes
    ----------
    name : the file, as messages call it
    algo : the algorithm that its flat keys belong to, or None where the command decides
    entries : settings by environment id, ``default`` among them
    base : the document that it extends
    """

    name: str
    algo: str | None
    entries: dict[str, dict[str, Any]]
    base: Document | None = None

    def chain(self) -> Iterator[Document]:
        """The documents that this one is built on, the deepest first, itself last."""
        if self.base is not None:
            yield from self.base.chain()
        yield self

    def environments(self) -> list[str]:
        """Environment ids in the chain, without ``default``."""
        ids = [name for document in self.chain() for name in document.entries]
        return [name for name in dict.fromkeys(ids) if name != "default"]

    def chosen(self, env: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Where and what this document says on `env`: first ``default``, then its own entry."""
        for name in ("default", env):
            if name in self.entries:
                yield f"{self.name}: {name}", self.entries[name]


def read_document(path: Path, above: tuple[Path, ...] = ()) -> Document:
    """Read a file and those that it extends.

    Raises
    ------
    ConfigError
        If a file cannot be read or has an unknown top key, or files extend each other in a ring.
    """
    here = path.resolve()
    if here in above:
        ring = " -> ".join(p.name for p in (*above[above.index(here) :], here))
        raise ConfigError(f"{path}: files extend each other in a ring ({ring}); break it")
    source = f"{path} (extended by {above[-1].name})" if above else str(path)
    content = _mapping(parse_yaml(_text(path, source), str(path)), str(path))
    extends = content.pop("extends", None)
    base = None
    if extends is not None:
        if not isinstance(extends, str):
            raise ConfigError(f"{path}: extends: {extends!r} is not the name of one file")
        base = read_document(path.parent / extends, (*above, here))
    return _document(str(path), path.stem, content, base)


def documents_for(path: Path, env: str) -> list[Document]:
    """The chain of documents that a file gives for `env`.

    Raises
    ------
    ConfigError
        If it cannot be read, or has neither `env` nor ``default``.
    """
    document = read_document(path)
    if not any(True for part in document.chain() for _ in part.chosen(env)):
        others = ", ".join(document.environments()) or "none"
        raise ConfigError(
            f"{path}: no entry for {env!r} and no 'default'; it has {others} (see --env)"
        )
    return list(document.chain())


@cache
def packaged(name: str) -> Document:
    """The packaged file of an algorithm, as ``packaged("iql")``."""
    return _document(f"zoo_configs/{name}.yml", name, _packaged_mapping(name), None)


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Entries of the packaged ``presets.yml`` by name."""
    return {
        name: _mapping(entry, f"zoo_configs/presets.yml: {name}")
        for name, entry in _packaged_mapping("presets").items()
    }


def _packaged_mapping(name: str) -> dict[str, Any]:
    source = importlib.resources.files("finflow_sb3.zoo_configs").joinpath(f"{name}.yml")
    where = f"zoo_configs/{name}.yml"
    return _mapping(parse_yaml(source.read_text(encoding="utf-8"), where), where)


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file; check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not a text in UTF-8; give a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None


def _document(name: str, stem: str, content: dict[str, Any], base: Document | None) -> Document:
    content = dict(content)
    algo = content.pop("algo", stem if stem in ALGORITHMS else None)
    if algo is not None and algo not in ALGORITHMS:
        raise unknown("algo", str(algo), ALGORITHMS, name)
    for key in content:
        _check_top_key(key, name)
    entries = {
        key: _mapping(entry, f"{name}: {key}")
        for key, entry in content.items()
        if not _TEMPLATE.fullmatch(key)
    }
    return Document(name, algo, entries, base)


def _check_top_key(key: str, where: str) -> None:
    if key == "default" or _ENV_ID.fullmatch(key) or _TEMPLATE.fullmatch(key):
        return
    try:
        find_key(key, "cqsac", where)
    except ConfigError:
        known = key in SECTIONS
    else:
        known = True
    if known:
        raise ConfigError(f"{where}: {key!r} stands at the top; put it under 'default:'")
    raise unknown("top key", key, ["default", "extends", "algo", "an environment id"], where)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        value = parse_call(value, where)
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {value!r} is not a mapping of names to values")
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: key {key!r} is not a text; put it in quotes")
    return value


def entry_layer(entry: dict[str, Any], algo: str | None, where: str) -> Layer:
    """What an entry sets: sections, and flat keys that belong to the section of `algo`.

    Flat keys of a plain SB3 algorithm are that algorithm's arguments and are left out.
    """
    layer: Layer = {}
    for name, value in entry.items():
        if name in SECTIONS:
            for inner, item in _mapping(value, f"{where}: {name}").items():
                _put(layer, check_key(name, inner, where), item, where)
        elif algo in PLAIN_ALGORITHMS:
            continue
        elif algo is not None:
            _put(layer, check_key(algo, name, where), value, where)
        else:
            key = find_key(name, None, where)
            assert key is not None
            _put(layer, key, value, where)
    return layer


def _put(layer: Layer, key: Key, value: Any, where: str) -> None:
    if key in layer:
        raise ConfigError(f"{where}: {key[1]!r} stands both flat and under {key[0]!r}; remove one")
    layer[key] = Given(clean(key[1], value, where), where)
