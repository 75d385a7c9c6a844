"""`finflow config`: what a command would run with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finflow_sb3.cli.console import console, out, print_json
from finflow_sb3.cli.options import Shared, shared_options, shared_sources

if TYPE_CHECKING:
    from finflow_sb3.config_arguments import PlainArguments
    from finflow_sb3.config_files import Resolved

__all__ = ["app"]

app = typer.Typer(help="Show, check, compare and export configurations.", no_args_is_help=True)

Algo = Annotated[
    str,
    typer.Option(
        "--algo",
        help="iql, td3bc, cqsac, or sac, td3, ddpg, ppo, a2c, tqc, crossq: owner of bare keys such "
        "as gamma.",
    ),
]
OwnerOfKeys = Annotated[
    str | None,
    typer.Option("--algo", help="Owner of bare keys such as gamma.", show_default="the file's"),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout.", show_default=False)
]
NAMED = "A YAML file, the folder of a run, a preset, or `packaged`."


@app.command("show")
@shared_options
def show(
    shared: Shared,
    algo: Algo = "cqsac",
    origin: Annotated[
        bool, typer.Option("--origin", help="Say where each value was written.")
    ] = False,
) -> None:
    """Print every setting, resolved from flags, FINFLOW_* variables, files and presets."""
    resolved, plain = _resolved(shared, algo)
    if shared.json:
        from finflow_sb3.config_export import own_content

        content = own_content(resolved.settings, plain)
        origins = resolved.origins | (plain.origins if plain else {})
        print_json({"settings": content, "origins": origins} if origin else content)
    else:
        from finflow_sb3.config_export import own_yaml

        origins = resolved.origins | (plain.origins if plain else {}) if origin else {}
        text = own_yaml(resolved.settings, algo, plain, origins)
        out.out(text, end="", highlight=False)


def _resolved(shared: Shared, algo: str) -> tuple[Resolved, PlainArguments | None]:
    from finflow_sb3.config_arguments import plain_arguments
    from finflow_sb3.config_files import resolve_with_origins
    from finflow_sb3.config_keys import PLAIN_ALGORITHMS

    sources = shared_sources(shared, {})
    resolved = resolve_with_origins(algo=algo, **sources)
    if algo not in PLAIN_ALGORITHMS:
        return resolved, None
    files, params = sources["files"], sources["params"]
    return resolved, plain_arguments(algo, resolved.settings.env, files=files, params=params)


@app.command("validate")
def validate(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A YAML file, or the folder of a run.")
    ],
    algo: OwnerOfKeys = None,
    json: Json = False,
) -> None:
    """Check a file: every key, type, range and contradiction, of every environment in it."""
    from finflow_sb3.config_validate import validate as checked

    validated = checked(file, algo)
    if json:
        print_json(validated)
        return
    for note in validated.notes:
        _say(f"note: {note}")
    _say(f"{validated.path}: fine")


@app.command("diff")
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=NAMED)],
    b: Annotated[str, typer.Argument(metavar="B", help=NAMED)],
    algo: OwnerOfKeys = None,
    json: Json = False,
) -> None:
    """Print the settings in which two files, runs or presets differ."""
    from finflow_sb3.config_files import diff as differences
    from finflow_sb3.config_files import named_config

    rows = differences(named_config(a, algo), named_config(b, algo))
    if json:
        print_json({key: {"a": left, "b": right} for key, left, right in rows})
    elif rows:
        _print_rows(rows, a, b)
    else:
        console.print("no difference")


@app.command("export")
@shared_options
def export(
    shared: Shared,
    algo: Algo = "cqsac",
    zoo: Annotated[
        bool, typer.Option("--zoo", help="Plain rl-baselines3-zoo YAML, arguments alone.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", show_default="stdout", help="Write here."),
    ] = None,
) -> None:
    """Write the resolved configuration as a file of its own, ours or the zoo's."""
    from finflow_sb3.config_export import own_yaml, zoo_yaml
    from finflow_sb3.files import write_whole

    resolved, plain = _resolved(shared, algo)
    left_out: dict[str, Any] = {}
    if zoo:
        exported = zoo_yaml(resolved.settings, algo, plain)
        text, left_out = exported.text, exported.left_out
    else:
        text = own_yaml(resolved.settings, algo, plain)
    if output is not None:
        write_whole(output, text.encode())
    if shared.json:
        print_json({"output": output, "yaml": text, "left_out": left_out})
    elif output is None:
        out.out(text, end="", highlight=False)
    else:
        _say(f"wrote {output}")
    for name, value in left_out.items():
        _say(f"not in the zoo's format: {name} = {value}")


def _say(text: str) -> None:
    from finflow_sb3.messages import one_line

    console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)


def _print_rows(rows: list[tuple[str, Any, Any]], a: str, b: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("setting", escape(a), escape(b))
    for key, left, right in rows:
        table.add_row(key, escape(str(left)), escape(str(right)))
    out.print(table)
