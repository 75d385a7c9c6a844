"""RL-Zoo style YAML documents: settings by environment, one document built on another."""

from __future__ import annotations

import copy
import importlib.resources
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from finflow_sb3.config_checks import ENVIRONMENTS, known_environment
from finflow_sb3.config_keys import (
    ALGORITHMS,
    PLAIN_ALGORITHMS,
    SECTIONS,
    Key,
    check_key,
    find_keys,
    unknown,
)
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import one_line, remedy, shown
from finflow_sb3.yaml_text import MOST_CHARACTERS, Lines, Parsed, parse_yaml_lines
from finflow_sb3.zoo_values import clean, parse_call

__all__ = [
    "Document",
    "Given",
    "Layer",
    "Where",
    "documents_for",
    "entry_layer",
    "packaged",
    "preset_layer",
    "presets",
    "read_document",
]

_ENV_ID = re.compile(r"(?:[\w:-]+/)?[\w:.-]+?-v\d+|[\w:-]+/[\w:.-]+")
_LONGEST_CHAIN = 20
# Holds shared settings for `<<: *anchor` in the zoo's files, and is no environment.
_TEMPLATE = re.compile(r"[\w.-]*defaults")


@dataclass(frozen=True)
class Given:
    """A value and where it was written, for messages."""

    value: Any
    where: str


Layer = dict[Key, Given]
"""What one source of settings sets."""

Where = Callable[..., str]
"""Where a key below an entry was written, from its path in the entry."""


@dataclass(frozen=True)
class Document:
    """One YAML file.

    Attributes
    ----------
    name : the file, as messages call it
    algo : the algorithm that its flat keys belong to, or None where the command decides
    entries : settings by environment id, ``default`` among them
    base : the document that it extends
    lines : of keys, by their path
    """

    name: str
    algo: str | None
    entries: dict[str, dict[str, Any]]
    base: Document | None = None
    lines: Lines = field(default_factory=dict, repr=False)

    def chain(self) -> Iterator[Document]:
        """The documents that this one is built on, the deepest first, itself last."""
        if self.base is not None:
            yield from self.base.chain()
        yield self

    def environments(self) -> list[str]:
        """Environment ids in the chain, without ``default``."""
        ids = [name for document in self.chain() for name in document.entries]
        return [name for name in dict.fromkeys(ids) if name != "default"]

    def chosen(self, env: str) -> Iterator[tuple[Where, dict[str, Any]]]:
        """Where and what this document says on `env`: first ``default``, then its own entry."""
        for name in dict.fromkeys(("default", env)):
            if name in self.entries:
                yield self.places(name), self.entries[name]

    def places(self, entry: str) -> Where:
        """Where keys of an entry stand: ``places("default")("gamma")`` is "my.yml:3: default"."""

        def where(*keys: str) -> str:
            path = (entry, *keys)
            line = next((self.lines[p] for p in _upwards(path) if p in self.lines), None)
            return f"{self.name}: {entry}" if line is None else f"{self.name}:{line}: {entry}"

        return where


def _upwards(path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for length in range(len(path), 0, -1):
        yield path[:length]


def read_document(path: Path, above: tuple[Path, ...] = ()) -> Document:
    """Read a file and those that it extends.

    Raises
    ------
    ConfigError
        If a file cannot be read or has an unknown top key, or files extend each other in a ring.
    """
    here, name = path.resolve(), one_line(str(path))
    if here in above:
        ring = " -> ".join(p.name for p in (*above[above.index(here) :], here))
        raise ConfigError(one_line(f"{name}: files extend each other in a ring ({ring}); break it"))
    if len(above) >= _LONGEST_CHAIN:
        raise ConfigError(f"{name}: extended over {_LONGEST_CHAIN} files; put some into one")
    source = one_line(f"{path} (extended by {above[-1].name})") if above else name
    parsed = _parsed(_text(path, source), name)
    content = dict(_mapping(copy.deepcopy(parsed.value), name))
    extends = content.pop("extends", None)
    base = None
    if extends is not None:
        if not isinstance(extends, str) or not extends or "\0" in extends:
            raise ConfigError(f"{name}: extends: {shown(extends)} is not the name of one file")
        base = read_document(path.parent / extends, (*above, here))
    return _document(name, path.stem, content, base, parsed.lines)


@lru_cache(maxsize=16)
def _parsed(text: str, name: str) -> Parsed:
    """A file is read several times on the way to settings; parsing it is what takes time."""
    return parse_yaml_lines(text, name)


def documents_for(path: Path, env: str) -> list[Document]:
    """The chain of documents that a file gives for `env`.

    Raises
    ------
    ConfigError
        If it cannot be read, or has neither `env` nor ``default``.
    """
    document = read_document(path)
    if not any(True for part in document.chain() for _ in part.chosen(env)):
        others = document.environments()
        listed = f"it has {', '.join(others[:10]) or 'none'} (see --env)"
        hint = remedy(env, others, listed) if others else listed
        raise ConfigError(f"{document.name}: no entry for {shown(env)} and no 'default'; {hint}")
    return list(document.chain())


@cache
def packaged(name: str) -> Document:
    """The packaged file of an algorithm, as ``packaged("iql")``."""
    content, lines = _packaged_mapping(name)
    return _document(f"zoo_configs/{name}.yml", name, content, None, lines)


@cache
def presets() -> tuple[str, ...]:
    """Names of the packaged presets."""
    return tuple(_packaged_mapping("presets")[0])


def preset_layer(name: str) -> Layer:
    """What a packaged preset sets.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    if name not in presets():
        raise unknown("preset", name, presets(), "--preset")
    content, lines = _packaged_mapping("presets")
    document = Document("zoo_configs/presets.yml", None, content, None, lines)
    return entry_layer(content[name], None, document.places(name))


@cache
def _packaged_mapping(name: str) -> tuple[dict[str, Any], Lines]:
    source = importlib.resources.files("finflow_sb3.zoo_configs").joinpath(f"{name}.yml")
    where = f"zoo_configs/{name}.yml"
    parsed = parse_yaml_lines(source.read_text(encoding="utf-8"), where)
    return _mapping(parsed.value, where), parsed.lines


def _text(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(4 * MOST_CHARACTERS + 1)  # /dev/zero has no end
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{where}: no such file; check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not a text in UTF-8; give a YAML file") from None
    except ValueError as error:
        raise ConfigError(f"{where}: cannot be read: {error}") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from None


def _document(
    name: str, stem: str, content: dict[str, Any], base: Document | None, lines: Lines
) -> Document:
    content = dict(content)
    algo = content.pop("algo", stem if stem in ALGORITHMS else None)
    if algo is not None and algo not in ALGORITHMS:
        raise unknown("algo", str(algo), ALGORITHMS, name)
    entries = {}
    for key, entry in content.items():
        place = f"{name}:{lines[(key,)]}" if (key,) in lines else name
        _check_top_key(key, place)
        if not _TEMPLATE.fullmatch(key):
            entries[key] = _mapping(entry, f"{place}: {key}")
    return Document(name, algo, entries, base, lines)


def _check_top_key(key: str, where: str) -> None:
    if key == "default" or _TEMPLATE.fullmatch(key):
        return
    if _ENV_ID.fullmatch(key):
        try:
            known_environment(key)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        return
    try:
        find_keys(key, "cqsac", where)
    except ConfigError:
        setting = key in SECTIONS
    else:
        setting = True
    if setting:
        raise ConfigError(f"{where}: {key!r} stands at the top; put it under 'default:'")
    known = ["default", "extends", "algo", *ENVIRONMENTS]
    raise ConfigError(
        f"{where}: unknown top key {shown(key)}; {remedy(key, known, 'give an environment id')}"
    )


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        value = parse_call(value, where)
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {shown(value)} is not a mapping of names to values")
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: key {shown(key)} is not a text; put it in quotes")
    return value


def entry_layer(entry: dict[str, Any], algo: str | None, where: Where) -> Layer:
    """What an entry sets: sections, and flat keys that belong to the section of `algo`.

    Flat keys of a plain SB3 algorithm are that algorithm's arguments and are left out.
    """
    layer: Layer = {}
    for name, value in entry.items():
        if name in SECTIONS:
            for inner, item in _mapping(value, f"{where(name)}: {name}").items():
                place = where(name, inner)
                _put(layer, check_key(name, inner, place), item, place)
        elif algo in PLAIN_ALGORITHMS:
            continue
        elif algo is not None:
            _put(layer, check_key(algo, name, where(name)), value, where(name))
        else:
            for key in find_keys(name, None, where(name)):
                _put(layer, key, value, where(name))
    return layer


def _put(layer: Layer, key: Key, value: Any, where: str) -> None:
    if key in layer:
        raise ConfigError(f"{where}: {key[1]!r} stands both flat and under {key[0]!r}; remove one")
    layer[key] = Given(clean(key[1], value, where), where)
