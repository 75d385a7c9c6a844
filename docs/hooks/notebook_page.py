"""An executed notebook as Markdown: its text, its code, and what that printed and drew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat

__all__ = ["notebook"]


def notebook(path: Path) -> str:
    """The cells of a notebook in their order, each with its stored output below it."""
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(part for cell in cells for part in _parts(cell))


def _parts(cell: Any) -> list[str]:
    if cell.cell_type == "markdown":
        return [cell.source.replace("](../docs/", "](")]
    outputs = [_output(output) for output in cell.outputs]
    return [f"```python\n{cell.source}\n```", *outputs]


def _output(output: Any) -> str:
    """What a cell printed, the picture or table that it showed, or the text of its value."""
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```"
    data = output.data
    if "image/png" in data:
        source = f"data:image/png;base64,{data['image/png'].replace(chr(10), '')}"
        return f'<img alt="{data.get("text/plain", "picture")}" src="{source}">'
    if "text/html" in data:
        return f'<div class="output" markdown="0">\n{data["text/html"].strip()}\n</div>'
    return f"```text\n{data['text/plain']}\n```"
