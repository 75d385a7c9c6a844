"""Code blocks of README and docs: Python runs, commands parse, YAML resolves."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from finflow_sb3.benchmark.plan import own_params
from finflow_sb3.cli.app import app
from finflow_sb3.config_arguments import plain_arguments
from finflow_sb3.config_files import resolve
from finflow_sb3.config_keys import PLAIN_ALGORITHMS, find_keys
from finflow_sb3.reopening import fixed_of_finetuning
from finflow_sb3.tuning.spaces import read_space

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
OWNERS = {"pretrain": "iql", "collect": None, "train": None, "benchmark": None}
"""Whose a bare key is in commands that are not CQSAC's."""
SPACE = re.compile(r'^```yaml title="space.yml"\n(.*?)^```', re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`]+`", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of every block in this language."""
    found = []
    for page in PAGES:
        for kind, code in BLOCK.findall(page.read_text()):
            if kind == language:
                found.append((page.name, code))
    return found


def commands() -> list[str]:
    """Every `finflow ...` line of the shell blocks, continuation lines joined."""
    lines = []
    for _, code in blocks("bash"):
        for line in code.replace("\\\n", " ").splitlines():
            if line.strip().startswith("finflow "):
                lines.append(line.split(" # ")[0].strip())
    return lines


def named(items: list[tuple[str, str]]) -> list[object]:
    """One test for each code: translations have the same."""
    names = {code: f"{page}-{i}" for i, (page, code) in reversed(list(enumerate(items)))}
    return [pytest.param(code, id=name) for code, name in names.items()]


@pytest.mark.docs
@pytest.mark.parametrize("code", named(blocks("python")))
def test_python_blocks_run(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line: str) -> None:
    """Every flag exists and takes its value; nothing is run."""
    group = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    context = group.make_context("finflow", list(words))
    while hasattr(context.command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, args = context.command.resolve_command(context, rest)
        assert command is not None, line
        context = command.make_context(name, list(args), parent=context)
    assert context.command.name in words


def values_of(words: list[str], *flags: str) -> list[str]:
    return [value for flag, value in itertools.pairwise(words) if flag in flags]


@pytest.mark.parametrize(
    "line", [line for line in commands() if re.search(r" -p | --param ", line)]
)
def test_parameters_of_commands_are_settings(line: str) -> None:
    """Every `-p key:value` is a setting and in its range; a resumed run may change it."""
    words = shlex.split(line)
    params = values_of(words, "-p", "--param")
    (algo,) = values_of(words, "--algo") or [OWNERS.get(words[1], "cqsac")]
    if algo in PLAIN_ALGORITHMS:
        plain_arguments(algo, params=params, environ={})
        return
    if words[1] == "benchmark":
        params, _ = own_params(params)
    resolve(
        algo=algo, params=params, environ={}, preset=next(iter(values_of(words, "--preset")), None)
    )
    if "--resume" in words and words[1] == "finetune":
        keys = [param.partition(":")[0] for param in params]
        fixed = [
            key for key in keys if fixed_of_finetuning(".".join(find_keys(key, algo, line)[0]))
        ]
        assert not fixed, f"a run can't change {fixed}"


@pytest.mark.parametrize("code", named(blocks("yaml")))
def test_yaml_blocks_resolve(code: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yml"
    path.write_text(code)
    assert resolve(algo="cqsac", files=[path]).as_dict() != resolve(algo="cqsac").as_dict()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_braces_stand_in_code(page: Path) -> None:
    """The site would take others for attributes of what stands before them, and drop them."""
    assert not re.findall(r"\{[^}\n]*\}", CODE.sub("", page.read_text("utf-8")))


def spaces() -> list[tuple[str, str]]:
    """(page, text) of every search space, which is no file of settings."""
    return [(page.name, text) for page in PAGES for text in SPACE.findall(page.read_text("utf-8"))]


@pytest.mark.parametrize("text", named(spaces()))
def test_search_spaces_are_read(text: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yml"
    path.write_text(text)
    assert read_space("cqsac", resolve(algo="cqsac", environ={}), path).ranges
