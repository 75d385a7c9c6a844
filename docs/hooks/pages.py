"""Fills in what pages leave to be generated from the code, when the site is built.

A line ``<!-- generated: KIND ARGUMENT -->`` is replaced by what `KINDS` makes of it. Pages stay
readable without it: GitHub shows their text, and not the tables.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import commands_page
import notebook_page
import settings_page

import finflow_sb3

__all__ = ["KINDS", "filled", "on_page_markdown"]

ROOT = Path(__file__).resolve().parent.parent.parent
MARKER = re.compile(r"^<!-- generated: (?P<kind>[\w-]+)(?: (?P<argument>\S+))? -->$", re.MULTILINE)
OUTSIDE = re.compile(r"\[(?P<text>[^\]]+)\]\((?:\.\./)+(?P<path>[^)]+)\)")
DIRECTIVE = re.compile(r"^::: finflow_sb3\.(?:\w+\.)*(?P<name>\w+)$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by MkDocs with the text of each page."""
    return without_links_outside(filled(markdown), Path(page.file.src_uri).parent)


def filled(markdown: str) -> str:
    """A page's text with its generated parts.

    Raises
    ------
    KeyError
        If a marker asks for what is not there.
    """

    def part(match: re.Match[str]) -> str:
        argument = match["argument"]
        if match["kind"] == "api":
            return other_names(markdown)
        return KINDS[match["kind"]](*([] if argument is None else [argument]))

    return MARKER.sub(part, markdown)


def without_links_outside(markdown: str, folder: Path) -> str:
    """Links to files that are no part of the site become the names of these files."""

    def text(match: re.Match[str]) -> str:
        target = (ROOT / "docs" / folder / match[0].rpartition("](")[2].rstrip(")")).resolve()
        inside = target.is_relative_to(ROOT / "docs")
        return match[0] if inside else match["text"]

    return OUTSIDE.sub(text, markdown)


def other_names(markdown: str) -> str:
    """Directives for the public names that a page does not have yet, where they are at home:
    some have the name of a sub-package.
    """
    there = {match["name"] for match in DIRECTIVE.finditer(markdown)} | {"__version__"}
    names = {name: finflow_sb3._OWN_NAMES.get(name, name) for name in finflow_sb3.__all__}
    return "\n\n".join(
        f"::: finflow_sb3.{finflow_sb3._HOMES[public]}.{name}"
        for public, name in names.items()
        if name not in there
    )


def code(path: str) -> str:
    """A file of the repository as a block of code."""
    text = (ROOT / path).read_text(encoding="utf-8").strip()
    return f'```python title="{path}"\n{text}\n```'


def page(path: str) -> str:
    """A Markdown file from outside of docs/, as it is."""
    return (ROOT / path).read_text(encoding="utf-8")


def notebook(path: str) -> str:
    """A notebook of the repository with its outputs."""
    return notebook_page.notebook(ROOT / path)


KINDS = {
    "callbacks": settings_page.callbacks_table,
    "code": code,
    "commands": commands_page.commands,
    "notebook": notebook,
    "page": page,
    "plain": settings_page.plain_table,
    "settings": settings_page.section_table,
    "shared-options": commands_page.shared_options_table,
    "sizes": settings_page.sizes_table,
    "variables": settings_page.variables,
}
"""What a marker may ask for; `api` besides, which needs to know the page."""
