"""The pages on extending: each change is made in a copy of the package, its example run there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_fixtures import write_prices

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "extend").glob("*.md"))
DIFF = re.compile(r"^```diff\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r'^```python title="try_it.py"\n(.*?)^```', re.MULTILINE | re.DOTALL)
MAPPED = ("cli", "zoo_configs")


def copy_of_package(folder: Path) -> Path:
    """The package as it is once installed; gives the folder that it can be imported from."""
    target = folder / "copy"
    shutil.copytree(ROOT / "finflow_sb3", target / "finflow_sb3")
    for name in MAPPED:
        shutil.copytree(ROOT / name, target / "finflow_sb3" / name)
    return target


def apply(diff: str, copy: Path) -> Path:
    """Make the change of one block: a file's name, then hunks of context, − and + lines.

    What stands before the change has to be in the file once; a file that is not there is written.
    """
    head, *hunks = re.split(r"^@@\n", diff, flags=re.MULTILINE)
    name = head.removeprefix("--- ").strip()
    path = copy / (name if name.startswith("finflow_sb3/") else f"finflow_sb3/{name}")
    text = path.read_text("utf-8") if path.exists() else ""
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert not before or text.count(before) == 1, f"{name}: {before!r}"
        text = text.replace(before, after) if before else text + after
    path.write_text(text, "utf-8")
    return path


def parts_of(page: Path) -> tuple[list[str], str]:
    text = page.read_text("utf-8")
    (example,) = EXAMPLE.findall(text)
    return DIFF.findall(text), example


@pytest.fixture(params=[page for page in PAGES if page.name != "index.md"], ids=lambda p: p.stem)
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_the_change_does_what_the_page_says(page: Path, tmp_path: Path) -> None:
    diffs, example = parts_of(page)
    copy = copy_of_package(tmp_path)
    changed = [apply(diff, copy) for diff in diffs]
    assert changed
    write_prices(tmp_path / "prices.csv", assets="ABCDE")
    where = f"import finflow_sb3 as it\nassert it.__file__.startswith({str(copy)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(copy)!r})\n{where}{example}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_example_needs_the_change(page: Path, tmp_path: Path) -> None:
    """Without it the example fails: it shows something."""
    _, example = parts_of(page)
    write_prices(tmp_path / "prices.csv", assets="ABCDE")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and "Error" in done.stderr


def test_changes_are_formatted_as_the_code_is(page: Path, tmp_path: Path) -> None:
    copy = copy_of_package(tmp_path)
    diffs, _ = parts_of(page)
    changed = [str(path) for diff in diffs if (path := apply(diff, copy)).suffix == ".py"]
    config = str(ROOT / "pyproject.toml")
    for verb in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *verb, "--config", config, *changed],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout
