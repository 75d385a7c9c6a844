"""What the tests of configuration share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finflow_sb3.config import Settings
from finflow_sb3.config_files import resolve
from finflow_sb3.errors import ConfigError

Write = Callable[..., Path]


def writer(folder: Path) -> Write:
    """Writes texts as files of `folder`."""

    def write(text: str, name: str = "my.yml") -> Path:
        path = folder / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def settled(algo: str | None = "cqsac", **changes: Any) -> Settings:
    """`resolve` apart from the variables that are set here."""
    return resolve(algo=algo, **{"environ": {}, **changes})


def one_line(error: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text
