"""The checkout: README, CI, constraints and package list say the same."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
TEST_LINE = (
    'python3.11 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[dev]" '
    "&& .venv/bin/nox"
)
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def pins() -> dict[str, str]:
    """Constraints: canonical name to version."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def test_ci_runs_the_line_of_the_readme() -> None:
    assert TEST_LINE in (ROOT / "README.md").read_text("utf-8").splitlines()
    assert TEST_LINE in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_constraints_pin_tested_versions_within_the_ranges() -> None:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        version = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_constraints_name_no_local_build_and_no_installer() -> None:
    assert not [v for v in pins().values() if not re.fullmatch(r"[0-9][0-9A-Za-z.]*", v)]
    assert not {"pip", "setuptools", "wheel", "finflow-sb3"} & set(pins())


def test_every_package_folder_is_listed() -> None:
    folders = {p.parent for p in (ROOT / "finflow_sb3").rglob("*.py")}
    found = {".".join(f.relative_to(ROOT).parts) for f in folders}
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert found | {"finflow_sb3.cli", "finflow_sb3.zoo_configs"} == listed
    assert all((f / "__init__.py").is_file() for f in folders)


def third_party(source: str) -> set[str]:
    """Top-level modules that `source` imports, without Python's and our own."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"finflow_sb3"}


def test_third_party_finds_the_imports_that_count() -> None:
    source = "import os, numpy.linalg\nfrom torch import nn\nfrom . import x\nimport finflow_sb3"
    assert third_party(source) == {"numpy", "torch"}


def test_what_is_imported_is_declared() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    ours = [each for name, each in extras.items() if name not in ("dev", "docs")]
    wanted = sum(ours, project["dependencies"])
    declared = {canonicalize_name(Requirement(r).name) for r in wanted}
    sources = [p for name in ("finflow_sb3", "cli") for p in (ROOT / name).rglob("*.py")]
    for path in sources:
        used = {canonicalize_name(DISTRIBUTIONS.get(m, m)) for m in third_party(path.read_text())}
        assert used <= declared, f"{path.relative_to(ROOT)}: {sorted(used - declared)}"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_benchmarks_import_what_there_is(path: Path) -> None:
    """Nothing else runs them: a name that has moved would show when somebody does."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("finflow_sb3"):
            module = importlib.import_module(str(node.module))
            missing = [a.name for a in node.names if not hasattr(module, a.name)]
            assert not missing, f"{node.module} has no {', '.join(missing)}"
