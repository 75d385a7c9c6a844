"""YAML's safe subset: read with limits and line numbers, and written so that it reads back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import shown

__all__ = ["Lines", "Parsed", "dump_yaml", "parse_yaml", "parse_yaml_lines"]

MOST_CHARACTERS = 1_000_000
# Aliases count as often as they stand: nine lines of ten aliases each would be a billion values.
MOST_VALUES = 100_000
DEEPEST = 50

_TAG = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+")

Lines = dict[tuple[str, ...], int]
"""Line of every key, by its path from the top of the document."""


@dataclass(frozen=True)
class Parsed:
    """The content of a document, and where its keys stand (to the third level)."""

    value: Any
    lines: Lines


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, in which 1e-3 is a number, a date a text and a key stands once."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        # Here and not afterwards: PyYAML takes quadratic time over thousands of brackets.
        if self.depth > DEEPEST:
            problem = f"nested more than {DEEPEST} deep; write it flatter"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, problem, mark)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here and not on construction: there `<<` has put merged keys beside a mapping's own.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"{shown(key.value)} stands twice; remove one"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back unchanged."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in _KINDS
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789"))


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML writes \x85 and its like unescaped in plain and single-quoted texts, and reads them
    # back as line ends.
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar(f"{_TAG}str", value, style=style)


_Dumper.add_representer(str, _text)
# A subclass such as numpy's float64 has a repr that is not YAML.
_Dumper.add_multi_representer(float, lambda dumper, value: dumper.represent_float(float(value)))


def parse_yaml(text: str, where: str) -> Any:
    """The content of one YAML document.

    Raises
    ------
    ConfigError
        If it is not YAML of the safe subset, a key stands twice in a mapping, or it is too large
        or too deep (aliases written out).
    """
    return parse_yaml_lines(text, where).value


def parse_yaml_lines(text: str, where: str) -> Parsed:
    """`parse_yaml`, with the lines that keys stand in; those of merged mappings in their own."""
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{where}: over {MOST_CHARACTERS:,} characters; that is no configuration")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Parsed(None, {})
        _count(node, {}, where)
        value = loader.construct_document(node)
        return Parsed(value, _lines(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None or "\n" not in text else f":{mark.line + 1}"
        reason = " ".join(str(error.problem or error.context).split())
        raise ConfigError(f"{where}{line}: {reason[:200]}") from None
    except (yaml.YAMLError, ValueError, LookupError, OverflowError) as error:
        # A tag such as !!int on a text that is none ends in one of the last three.
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: cannot be read as YAML: {reason[:200]}") from None


def _count(node: yaml.Node, known: dict[int, int], where: str) -> int:
    """How many values a node stands for, aliases written out."""
    if id(node) in known:
        if known[id(node)] == 0:
            line = node.start_mark.line + 1
            raise ConfigError(f"{where}:{line}: an alias stands for itself; write it out")
        return known[id(node)]
    known[id(node)] = 0  # being counted
    size = 1 + sum(_count(child, known, where) for child in _children(node))
    if size > MOST_VALUES:
        raise ConfigError(
            f"{where}: over {MOST_VALUES:,} values with its aliases written out; "
            "that is no configuration"
        )
    known[id(node)] = size
    return size


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _lines(node: yaml.Node, above: tuple[str, ...] = ()) -> Lines:
    """Lines of the keys below `node`, which construction has merged already."""
    found: Lines = {}
    if isinstance(node, yaml.MappingNode) and len(above) < 3:
        for key, value in node.value:  # a later one overrides what was merged before it
            if isinstance(key, yaml.ScalarNode):
                path = (*above, key.value)
                found[path] = key.start_mark.line + 1
                found |= _lines(value, path)
    return found


def dump_yaml(value: Any) -> str:
    """YAML that `parse_yaml` reads back to an equal value, keys in their order."""
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=10**6,
    )
    return text
