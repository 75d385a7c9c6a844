"""Tables of the settings, from the code: name, default, what else sets it, range, meaning."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from finflow_sb3.config_callbacks import CALLBACKS
from finflow_sb3.config_documents import Layer, entry_layer, packaged, preset_layer, presets
from finflow_sb3.config_evaluation import BASELINES, STRESS
from finflow_sb3.config_keys import OTHER_VARIABLES, SECTIONS
from finflow_sb3.config_plain import PLAIN
from finflow_sb3.network_sizes import NetworkSizes

__all__ = ["callbacks_table", "plain_table", "section_table", "sizes_table", "variables"]

# Shown by their names, as whoever writes them would look for one.
LISTED = {"evaluation.baselines": BASELINES, "evaluation.stress": tuple(STRESS)}
KINDS = {bool: "true, false", str: "text", dict: "mapping", float: "number", int: "whole number"}
WORDS = {Any: "any", type(None): "null"}


def section_table(section: str) -> str:
    """Every setting of a section of `Settings`."""
    kind = SECTIONS[section]
    layers = _packaged_layers()
    rows = [("setting", "default", "set to", "range", "meaning")]
    for field, hint in _fields(kind):
        name = f"{section}.{field.name}"
        changes = [
            f"{_code(layer[section, field.name].value)} ({source})"
            for source, layer in layers.items()
            if (section, field.name) in layer
        ]
        bounds = _range(field, hint)
        if name in LISTED:
            bounds = ", ".join(LISTED[name])
        anchor = f"{{ #{name} }}"
        rows.append(
            (f"`{field.name}`{anchor}", _default(field), "<br>".join(changes), bounds, _help(field))
        )
    return _table(rows, narrow=not any(row[2] for row in rows[1:]))


def sizes_table() -> str:
    """What `policy_kwargs` of the experts may hold."""
    rows = [("key", "default", "range", "meaning")]
    for field, hint in _fields(NetworkSizes):
        rows.append((f"`{field.name}`", _default(field), _range(field, hint), _help(field)))
    return _table(rows)


def callbacks_table() -> str:
    """SB3's callbacks that `cqsac.callback` may name, and their arguments."""
    rows = [("callback", "argument", "default", "range", "meaning")]
    for name, kind in CALLBACKS.items():
        for field, hint in _fields(kind):
            title = f"`{name}`", f"`{field.name}`"
            rows.append((*title, _default(field), _range(field, hint), _help(field)))
    return _table(rows)


def plain_table(algo: str) -> str:
    """Arguments of one of SB3's own algorithms."""
    layer = packaged(algo).entries["default"]
    rows = [("argument", "default", "set to", "range", "meaning")]
    for field, hint in _fields(PLAIN[algo]):
        value = layer.get(field.name)
        change = "" if value is None else f"{_code(value)} ({algo}.yml)"
        name = f"`{field.name}`"
        rows.append((name, _default(field), change, _range(field, hint), _help(field)))
    return _table(rows)


def variables() -> str:
    """Environment variables that are no settings."""
    return ", ".join(f"`{name}`" for name in OTHER_VARIABLES)


# ------------------------------------------------------------------ cells


def _packaged_layers() -> dict[str, Layer]:
    """What the packaged files set, and the presets over them, by how the table calls them."""
    found = {}
    for algo in ("iql", "td3bc", "cqsac"):
        document = packaged(algo)
        found[f"{algo}.yml"] = entry_layer(document.entries["default"], algo, document.places("x"))
    return found | {f"--preset {name}": preset_layer(name) for name in presets()}


def _fields(kind: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield field, hints[field.name]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _code(field.default)
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return _code({}) if not value else "as listed"
    return "must be given"


def _help(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata["help"]).replace("|", "\\|").replace("<", "&lt;")


def _code(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) > 4:
        return "as listed"
    if value is None or isinstance(value, (bool, dict, list, tuple)):
        return f"`{json.dumps(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _range(field: dataclasses.Field[Any], hint: Any) -> str:
    low, high = field.metadata["low"], field.metadata["high"]
    parts = [
        _bounds(low, high) if option in (float, int) and low is not None else text
        for option, text in _options(hint)
    ]
    return ", ".join(dict.fromkeys(part for part in parts if part))


def _bounds(low: float, high: float) -> str:
    return f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    whole = isinstance(value, int) or value.is_integer()
    return f"{int(value):,}" if whole else f"{value:g}"


def _options(hint: Any) -> Iterator[tuple[Any, str]]:
    """Each type that a setting may have, and how it is called; a list's by its items."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in inner:
            yield from _options(option)
    elif origin is Literal:
        yield hint, ", ".join(f"`{choice}`" for choice in inner)
    elif origin is tuple:
        yield hint, "list"
    else:
        yield origin or hint, {**KINDS, **WORDS}[origin or hint]


def _table(rows: list[tuple[str, ...]], narrow: bool = False) -> str:
    """A Markdown table; `narrow` leaves the third column out."""
    kept = [row[:2] + row[3:] if narrow else row for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in kept]
    return "\n".join([lines[0], "|" + "---|" * len(kept[0]), *lines[1:]])
