"""Values as they are written in YAML files and on the command line, read without running them."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

import yaml

from finflow_sb3.errors import ConfigError

__all__ = ["ACTIVATIONS", "clean", "dump_yaml", "parse_call", "parse_yaml"]

ACTIVATIONS = ("ReLU", "Tanh", "ELU", "LeakyReLU", "SiLU", "GELU")
_MODULES = ("nn", "th.nn", "torch.nn")
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, in which 1e-3 is a number, a date a text and a key stands once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here and not on construction: there `<<` has put merged keys beside a mapping's own.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} stands twice; remove one", key.start_mark
                    )
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back unchanged."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML writes \x85 and its like unescaped in plain and single-quoted texts, and reads them
    # back as line ends.
    style = None if value.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
# A subclass such as numpy's float64 has a repr that is not YAML.
_Dumper.add_multi_representer(float, lambda dumper, value: dumper.represent_float(float(value)))


def parse_yaml(text: str, where: str) -> Any:
    """The content of one YAML document.

    Raises
    ------
    ConfigError
        If it is not YAML of the safe subset, or a key stands twice in a mapping.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        raise ConfigError(f"{where}{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: cannot be read as YAML: {reason}") from None


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


def clean(key: str, value: Any, where: str) -> Any:
    """`value` of the setting `key`, with the zoo's textual forms resolved and checked.

    ``*_kwargs`` and ``normalize`` may be ``dict(...)`` in a text; ``learning_rate`` is a number
    or ``lin_<number>`` (kept as text); an activation becomes its bare name.

    Raises
    ------
    ConfigError
        If the text has another form.
    """
    where = f"{where}: {key}"
    if key.endswith("_kwargs") or key == "normalize":
        if isinstance(value, str):
            value = parse_call(value, where)
        return _plain(value, where)
    if key == "learning_rate":
        return _schedule(value, where)
    return value


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    if depth > 50:
        raise ConfigError(f"{where}: nested more than 50 deep; write it flatter")
    if isinstance(value, dict):
        return {
            k: _activation(v, where) if k == "activation_fn" else _plain(v, where, depth + 1)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(v, where, depth + 1) for v in value]
    return value


def _schedule(value: Any, where: str) -> Any:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ConfigError(f"{where}: {value!r} is neither a number nor a schedule such as lin_3e-4")
    text = str(value)
    number = text.removeprefix("lin_")
    if not _NUMBER.fullmatch(number) or not 0.0 <= float(number) < math.inf:
        raise ConfigError(
            f"{where}: {value!r} is neither a number from 0 up nor a schedule such as lin_3e-4"
        )
    return text if text.startswith("lin_") else float(number)


def _activation(value: Any, where: str) -> str:
    if isinstance(value, str):
        module, _, name = value.rpartition(".")
        if name in ACTIVATIONS and (not module or module in _MODULES):
            return name
    raise ConfigError(f"{where}: activation {value!r} is not one of {', '.join(ACTIVATIONS)}")


def parse_call(text: str, where: str) -> Any:
    """The value of a Python literal in which ``dict(...)`` and activation names may stand.

    Nothing is evaluated. Tuples become lists, as YAML has no tuples; ``nn.ReLU`` becomes
    ``"ReLU"``.

    Raises
    ------
    ConfigError
        If it is not Python, or holds anything else: a call, an operator, another name.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _literal(tree.body, where)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(
            f"{where}: {text!r} is not a mapping; write dict(net_arch=[256, 256]) or YAML"
        ) from None


def _literal(node: ast.expr, where: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item, where) for item in items]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return _mapping([(_key(key, where), value) for key, value in pairs], where)
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=words):
            return _mapping([(_word(word, where), word.value) for word in words], where)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            if not isinstance(number, bool):
                return -number
        case ast.Attribute():
            return _activation(ast.unparse(node), where)
    raise ConfigError(
        f"{where}: {ast.unparse(node)!r} is not allowed; "
        "use numbers, texts, lists, dict(...) and activations such as nn.ReLU"
    )


def _mapping(pairs: list[tuple[str, ast.expr]], where: str) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{where}: {name!r} stands twice; remove one")
    return {name: _literal(value, where) for name, value in pairs}


def _key(node: ast.expr | None, where: str) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    shown = "**" if node is None else ast.unparse(node)
    raise ConfigError(f"{where}: key {shown!r} is not a text; put it in quotes")


def _word(word: ast.keyword, where: str) -> str:
    if word.arg is None:
        raise ConfigError(f"{where}: '**' is not allowed in dict(...); write the keys out")
    return word.arg
