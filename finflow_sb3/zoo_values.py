"""Values as they are written in YAML files and on the command line, read without running them."""

from __future__ import annotations

import ast
import keyword
import math
import re
import warnings
from collections import Counter
from typing import Any

from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import remedy, shown
from finflow_sb3.yaml_text import DEEPEST, dump_yaml, parse_yaml

__all__ = [
    "ACTIVATIONS",
    "activation_name",
    "call_text",
    "check_text",
    "clean",
    "dump_yaml",
    "parse_call",
    "parse_yaml",
    "plain",
    "schedule",
]

ACTIVATIONS = ("ReLU", "Tanh", "ELU", "LeakyReLU", "SiLU", "GELU")
_MODULES = ("nn", "th.nn", "torch.nn")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_LONGEST_TEXT = 10_000


def clean(key: str, value: Any, where: str) -> Any:
    """`value` of the setting `key`, with the zoo's textual forms resolved and checked.

    ``*_kwargs`` and ``normalize`` may be ``dict(...)`` in a text; ``learning_rate`` is a number
    or ``lin_<number>`` (kept as text); an activation becomes its bare name.

    Raises
    ------
    ConfigError
        If the text has another form.
    """
    try:
        if key.endswith("_kwargs") or key == "normalize":
            return plain(parse_call(value, "") if isinstance(value, str) else value)
        if key == "learning_rate":
            return schedule(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {key}: {error}") from None
    return value


def plain(value: Any, depth: int = 0) -> Any:
    """`value` with lists for tuples and bare names for activations, if YAML can say all of it.

    Raises
    ------
    ConfigError
        If it holds a number that is not finite, a key that is no text, a text that is not Unicode
        or anything but numbers, texts, truth values, null, lists and mappings.
    """
    if depth > DEEPEST:
        raise ConfigError(f"nested more than {DEEPEST} deep; write it flatter")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"key {shown(key)} is not a text; put it in quotes")
        return {
            check_text(k): activation_name(v) if k == "activation_fn" else plain(v, depth + 1)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(v, depth + 1) for v in value]
    if isinstance(value, str):
        return check_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{value!r} is not a finite number")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise ConfigError(f"{shown(value)} is neither a number nor a text, list or mapping")


def check_text(value: str) -> str:
    """`value`, refused if no file or path could hold it."""
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise ConfigError(f"{shown(value)} has characters that no text in UTF-8 can hold")
    return value


# Far above what learns: a rate that diverges is for the stability monitor to see.
LARGEST_RATE = 100


def schedule(value: Any) -> float | str:
    """A learning rate: a number, or ``lin_<number>``, which stays text."""
    text = str(value) if isinstance(value, float) else value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_RATE:
        return float(value)
    number = text.removeprefix("lin_") if isinstance(text, str) else ""
    if not _NUMBER.fullmatch(number) or not 0.0 <= float(number) <= LARGEST_RATE:
        raise ConfigError(
            f"{shown(value)} is neither a number from 0 to {LARGEST_RATE} nor a schedule "
            "such as lin_3e-4"
        )
    return text if text.startswith("lin_") else float(number)


def activation_name(value: Any) -> str:
    """The bare name of an activation, as ``ReLU`` of ``nn.ReLU``."""
    if isinstance(value, str):
        module, _, name = value.rpartition(".")
        if name in ACTIVATIONS and (not module or module in _MODULES):
            return name
    hint = remedy(value if isinstance(value, str) else "", ACTIVATIONS)
    raise ConfigError(f"activation {shown(value)} is not known; {hint}")


def parse_call(text: str, where: str) -> Any:
    """The value of a Python literal in which ``dict(...)`` and activation names may stand.

    Nothing is evaluated. Tuples become lists, as YAML has no tuples; ``nn.ReLU`` becomes
    ``"ReLU"``.

    Raises
    ------
    ConfigError
        If it is not Python, or holds anything else: a call, an operator, another name.
    """
    where = f"{where}: " if where else ""
    try:
        if len(text) > _LONGEST_TEXT:
            raise ValueError
        with warnings.catch_warnings(action="ignore"):  # Python's remarks on style
            tree = ast.parse(text.strip(), mode="eval")
        return _literal(tree.body)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(
            f"{where}{shown(text)} is not a mapping; write dict(net_arch=[256, 256]) or YAML"
        ) from None


def call_text(value: dict[str, Any]) -> str:
    """``dict(...)`` that `parse_call` reads back to `value`, as the zoo writes it."""
    items = {key: _call_item(key, item) for key, item in value.items()}
    if all(map(_is_word, items)):
        return f"dict({', '.join(f'{key}={text}' for key, text in items.items())})"
    return f"{{{', '.join(f'{key!r}: {text}' for key, text in items.items())}}}"


def _is_word(key: str) -> bool:
    return key.isidentifier() and key.isascii() and not keyword.iskeyword(key)


def _call_item(key: str, value: Any) -> str:
    if key == "activation_fn":
        return f"nn.{value}"
    if isinstance(value, dict):
        return call_text(value)
    if isinstance(value, list):
        return f"[{', '.join(_call_item('', item) for item in value)}]"
    return repr(value)


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return _mapping([(_key(key), value) for key, value in zip(keys, values, strict=True)])
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=words):
            return _mapping([(_word(word), word.value) for word in words])
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            if not isinstance(number, bool):
                return -number
        case ast.Attribute():
            return activation_name(ast.unparse(node))
    raise ConfigError(
        f"{shown(ast.unparse(node))} is not allowed; "
        "use numbers, texts, lists, dict(...) and activations such as nn.ReLU"
    )


def _mapping(pairs: list[tuple[str, ast.expr]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(f"{shown(twice[0])} stands twice; remove one")
    return {name: _literal(value) for name, value in pairs}


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    text = "**" if node is None else ast.unparse(node)
    raise ConfigError(f"key {shown(text)} is not a text; put it in quotes")


def _word(word: ast.keyword) -> str:
    if word.arg is None:
        raise ConfigError("'**' is not allowed in dict(...); write the keys out")
    return word.arg
