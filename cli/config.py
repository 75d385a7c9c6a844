"""`finflow config`: what a command would run with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finflow_sb3.cli.console import console, out, print_json
from finflow_sb3.cli.options import Shared, shared_options, shared_settings

__all__ = ["app"]

app = typer.Typer(help="Show, check and compare configurations.", no_args_is_help=True)

Algo = Annotated[
    str, typer.Option("--algo", help="iql, cqsac, sac or tqc: owner of bare keys such as gamma.")
]
ConfigFile = Annotated[Path, typer.Argument(help="A YAML file, or the folder of a run.")]


@app.command("show")
@shared_options
def show(shared: Shared, algo: Algo = "cqsac") -> None:
    """Print every setting, resolved from flags, FINFLOW_* variables, files and presets."""
    from finflow_sb3.config_files import plain_yaml

    settings = shared_settings(shared, algo)
    if shared.json:
        print_json(settings.as_dict())
    else:
        out.out(plain_yaml(settings), end="", highlight=False)


@app.command("validate")
def validate(file: ConfigFile) -> None:
    """Check a file: every key, type and range, of every environment in it."""
    from finflow_sb3.config_documents import read_document
    from finflow_sb3.config_files import DEFAULT_ENV, resolve
    from finflow_sb3.config_keys import PLAIN_ALGORITHMS

    path = _file(file)
    document = read_document(path)
    for env in document.environments() or [DEFAULT_ENV]:
        resolve(env, algo=document.algo, files=[path], environ={})
        if document.algo in PLAIN_ALGORITHMS:
            _check_arguments(document.algo, env, path)
    console.print(f"{path}: fine", markup=False, highlight=False, soft_wrap=True)


def _check_arguments(algo: str, env: str, path: Path) -> None:
    import inspect

    from finflow_sb3.config_arguments import algorithm_arguments
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    import sb3_contrib
    import stable_baselines3

    classes = {"sac": stable_baselines3.SAC, "tqc": sb3_contrib.TQC}
    known = list(inspect.signature(classes[algo]).parameters)
    algorithm_arguments(algo, env, known=known, files=[path], environ={})


@app.command("diff")
def diff(
    a: ConfigFile,
    b: ConfigFile,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Print the settings in which two files or runs differ."""
    from finflow_sb3.config_files import diff as differences
    from finflow_sb3.config_files import read_config

    rows = differences(read_config(_file(a)), read_config(_file(b)))
    if json:
        print_json({key: {"a": left, "b": right} for key, left, right in rows})
    elif rows:
        _print_rows(rows, str(a), str(b))
    else:
        console.print("no difference")


def _print_rows(rows: list[tuple[str, Any, Any]], a: str, b: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("setting", escape(a), escape(b))
    for key, left, right in rows:
        table.add_row(key, escape(str(left)), escape(str(right)))
    out.print(table)


def _file(path: Path) -> Path:
    return path / "config.yml" if path.is_dir() else path
