"""The installed distribution: its files, its command, its public names."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import yaml

import finflow_sb3
from finflow_sb3.config_keys import ALGORITHMS

SITE_PACKAGES = Path(yaml.__file__).parent.parent
FINFLOW = Path(sys.executable).parent / "finflow"


def elsewhere() -> dict[str, str]:
    """The environment without PYTHONPATH, which could lend the checkout to an empty install."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


@pytest.mark.parametrize("name", ["cli", "tests", "zoo_configs", "benchmarks", "docs"])
def test_nothing_else_is_installed_at_the_top(name: str) -> None:
    there = [*SITE_PACKAGES.glob(name), *SITE_PACKAGES.glob(f"{name}.*")]
    # Another distribution may do what this one must not: a dependency of rl_zoo3 does.
    assert not there or importlib.metadata.packages_distributions().get(name)
    (own,) = importlib.metadata.distributions(name="finflow-sb3", path=[str(SITE_PACKAGES)])
    assert name not in {path.parts[0] for path in own.files or []}


@pytest.mark.parametrize("module", ["finflow_sb3.cli.app", "finflow_sb3.zoo_configs"])
def test_mapped_packages_import_from_any_directory(module: str, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", f"import {module}"], cwd=tmp_path, env=elsewhere(), check=True
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_zoo_yaml_is_installed_and_readable(algorithm: str) -> None:
    file = importlib.resources.files("finflow_sb3.zoo_configs") / f"{algorithm}.yml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert "default" in content


def test_package_is_marked_as_typed() -> None:
    assert (importlib.resources.files("finflow_sb3") / "py.typed").is_file()


def test_command_tells_its_version(tmp_path: Path) -> None:
    done = subprocess.run(
        [FINFLOW, "--version"],
        cwd=tmp_path,
        env=elsewhere(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert importlib.metadata.version("finflow-sb3") in done.stdout


def test_version_is_a_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", finflow_sb3.__version__)


@pytest.mark.parametrize("name", finflow_sb3.__all__)
def test_public_names_resolve(name: str) -> None:
    value = getattr(finflow_sb3, name)
    assert not isinstance(value, ModuleType)
    assert name in dir(finflow_sb3)


def test_a_verb_is_not_hidden_by_the_package_of_its_name() -> None:
    importlib.import_module("finflow_sb3.pretrain")
    assert isinstance(finflow_sb3.pretrain, FunctionType)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        _ = finflow_sb3.pretrian


def test_heavy_imports_print_nothing_to_stdout() -> None:
    """Where Shimmy is installed d3rlpy says so on stdout, where results go."""
    code = "import finflow_sb3.quiet as q; q.silence_gym_notice(); import finflow_sb3.pipeline"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
