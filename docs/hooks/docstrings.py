"""Docstrings of the house as Markdown: sections and their entries become headings and lists."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["HouseStyle", "as_markdown"]

SECTIONS = ("Parameters", "Attributes", "Returns", "Raises", "Examples", "Notes")
ENTRY = re.compile(r"(?P<names>[\w*][\w*, ]*?)(?: : (?P<text>.*))?")


class HouseStyle(griffe.Extension):
    """Rewrites every docstring when it is collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """A docstring in the numpydoc-like style of the code, as Markdown.

    ``name : text`` becomes a list item; lines that are indented below it go on with it.
    """
    lines = docstring.replace("``", "`").splitlines()
    out: list[str] = []
    section = ""
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if line.strip() in SECTIONS and re.fullmatch(r"-{3,}", following.strip()):
            section = line.strip()
            out += ["", f"**{section}**", ""]
        elif section and re.fullmatch(r"-{3,}", line.strip()):
            continue
        elif section:
            out.append(_in_section(section, line))
        else:
            out.append(line)
    return "\n".join(out)


def _in_section(section: str, line: str) -> str:
    """One line below a section's heading."""
    if not line.strip() or section in ("Examples", "Notes"):
        return line
    if line.startswith(" "):
        return f"    {line.strip()}"
    entry = ENTRY.fullmatch(line)
    if section == "Returns" or entry is None:
        return f"- {line}"
    names, text = entry["names"], entry["text"]
    return f"- `{names}`:" if text is None else f"- `{names}`: {text}"
