"""The examples run as they are, and the notebook's outputs are those that it gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPTS = {
    "own_prices": "report: logs/cqsac/finflow-US20-v0_1/report/index.html",
    "custom_behaviour": "best epoch",
    "cqsac_anywhere": "600 steps: reward",
    "compare": "equal_weight",
    "stop_and_resume": "metrics.jsonl of both are equal, byte for byte",
}
NOTEBOOK = EXAMPLES / "portfolio.ipynb"


def test_every_script_is_among_them() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {*SCRIPTS, "made_up"}


@pytest.mark.docs
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert SCRIPTS[name] in done.stdout


def cells_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(output: Any) -> tuple[str, ...]:
    """What an output is, and its text without numbers: figures differ between processors."""
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    words = re.sub(r"[-−+]?\d[\d.,]*(?:e-?\d+)?|\s+|-", " ", text)
    return (output.output_type, *sorted(output.get("data", {})), " ".join(words.split()))


@pytest.mark.docs
def test_notebook_runs_and_gives_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPLBACKEND")  # pictures are shown, not dropped
    stored = nbformat.read(NOTEBOOK, as_version=4)
    again = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(again, timeout=300, kernel_name="python3", resources=resources).execute()
    for before, after in zip(cells_of(stored), cells_of(again), strict=True):
        outputs = [each for each in after.outputs if each.get("name") != "stderr"]
        assert list(map(shown, outputs)) == list(map(shown, before.outputs)), before.source


def test_notebook_is_executed_and_names_no_place_of_a_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = cells_of(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.outputs for cell in cells)
    text = NOTEBOOK.read_text("utf-8")
    for place in ("/home/", "/root/", "/tmp/", "/Users/", "site-packages", os.sep + "work"):
        assert place not in text
