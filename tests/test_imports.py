"""Imports point one way through the layers, and the command starts without the heavy packages."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

LAYERS = (
    ("errors",),
    (
        "allocator",
        "checks",
        "files",
        "manifests",
        "messages",
        "quiet",
        "stopping",
        "_version",
        "zoo_configs",
        "zoo_search",
    ),
    ("yaml_text",),
    ("zoo_values",),
    ("config_fields", "config_forms"),
    ("network_sizes",),
    ("config_callbacks", "config_evaluation", "config_policies"),
    ("config", "config_checks", "config_trading"),
    ("config_documents", "config_keys", "config_layers", "config_plain"),
    ("config_files",),
    ("config_arguments", "config_export", "config_validate"),
    ("market",),
    ("envs",),
    ("nets",),
    ("parallel",),
    ("offline",),
    ("evaluation",),
    ("runs",),
    ("pretrain",),
    ("cqsac",),
    ("training",),
    ("results",),
    ("ensembles", "opening", "pretraining_record", "run_notes"),
    ("backtest_rules",),
    ("plain_pretraining",),
    ("collecting", "evaluate_run", "plot_runs"),
    ("plain_training",),
    ("allocation", "deployment"),
    ("allocate", "demo", "doctor", "explain", "pipeline", "zoo"),
    ("reopening",),
    ("benchmark",),
    ("walkforward", "walkforward_report"),
    ("exchange", "profiling", "resuming", "tuning"),
    ("ensemble_training",),
    ("cli",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
HEAVY = ("d3rlpy", "matplotlib", "numpy", "pandas", "skfolio", "stable_baselines3", "torch")


@dataclass(frozen=True)
class Import:
    """`module` (dotted, absolute) is imported in line `line`."""

    module: str
    line: int


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None, f"{package} has no __init__.py"
    return Path(spec.origin).parent


def modules() -> dict[str, Path]:
    """Every module of the installed package, by dotted name."""
    found: dict[str, Path] = {}
    for package in ("finflow_sb3", "finflow_sb3.cli", "finflow_sb3.zoo_configs"):
        folder = _folder(package)
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


MODULES = modules()


def imports_of(source: str, module: str, is_package: bool) -> list[Import]:
    """Imports of finflow_sb3 anywhere in `source`: inside functions and TYPE_CHECKING too."""
    found: list[Import] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level + (1 if is_package else 0) or None]
                base = ".".join([*parent, *([base] if base else [])])
            # `from finflow_sb3 import envs` names a layer, `from finflow_sb3.envs import x` has one
            names = [f"{base}.{a.name}" if base == "finflow_sb3" else base for a in node.names]
            found += [Import(name, node.lineno) for name in names]
    return [i for i in found if i.module.split(".")[0] == "finflow_sb3"]


def faults(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports in `source` that point down the list."""
    own = RANK[module.split(".")[1]]
    wrong = []
    for item in imports_of(source, module, is_package):
        target = item.module.removeprefix("finflow_sb3").lstrip(".").split(".")[0]
        # Names of the package itself come from all layers: only the command may take them there.
        rank = RANK["_version"] if target == "__version__" else RANK.get(target, RANK["cli"])
        if rank > own:
            wrong.append(f"{module}:{item.line} imports {item.module}, which lies below it")
    return wrong


def test_every_module_has_a_layer() -> None:
    tops = {name.split(".")[1] for name in MODULES if "." in name}
    assert tops <= set(RANK), f"give {sorted(tops - set(RANK))} a place in LAYERS"


@pytest.mark.parametrize("module", [m for m in MODULES if m != "finflow_sb3"])
def test_imports_point_up(module: str) -> None:
    path = MODULES[module]
    assert faults(path.read_text("utf-8"), module, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("source", "module", "is_package", "wrong"),
    [
        ("from finflow_sb3.errors import DataError", "finflow_sb3.market.prices", False, 0),
        ("from finflow_sb3.market.layout import x", "finflow_sb3.market.prices", False, 0),
        ("from finflow_sb3.envs import vec", "finflow_sb3.market.prices", False, 1),
        ("import finflow_sb3.envs.vec as v", "finflow_sb3.market.prices", False, 1),
        ("def f():\n    from finflow_sb3 import envs", "finflow_sb3.market.prices", False, 1),
        ("from ..envs import vec", "finflow_sb3.market.prices", False, 1),
        ("from .. import envs", "finflow_sb3.market.prices", False, 1),
        ("from . import layout", "finflow_sb3.market.prices", False, 0),
        ("from .prices import PriceTable", "finflow_sb3.market", True, 0),
        ("from ..envs import vec", "finflow_sb3.market", True, 1),
        ("import finflow_sb3", "finflow_sb3.pipeline", False, 1),
        ("from finflow_sb3 import PriceTable", "finflow_sb3.pipeline", False, 1),
        ("from finflow_sb3 import train", "finflow_sb3.cli.app", False, 0),
        ("from finflow_sb3 import __version__", "finflow_sb3.runs.folder", False, 0),
        ("import numpy\nfrom torch import nn", "finflow_sb3.errors", False, 0),
    ],
)
def test_the_checker_tells_right_from_wrong(
    source: str, module: str, is_package: bool, wrong: int
) -> None:
    assert len(faults(source, module, is_package)) == wrong


def loaded_by(code: str) -> set[str]:
    """Heavy packages that a fresh interpreter has loaded after `code`."""
    tail = f"import sys, json; print(json.dumps([n for n in {HEAVY} if n in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{tail}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


HELP = """
import sys
from finflow_sb3.cli.app import main
sys.argv = ["finflow", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import finflow_sb3; finflow_sb3.__version__; dir(finflow_sb3)",
        "import finflow_sb3.cli.app",
        HELP,
    ],
    ids=["package", "cli", "help"],
)
def test_starts_without_the_heavy_packages(code: str) -> None:
    assert loaded_by(code) == set()


def test_the_probe_sees_a_heavy_package() -> None:
    assert loaded_by("import numpy") == {"numpy"}
