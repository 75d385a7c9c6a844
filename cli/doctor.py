"""`finflow doctor`: does this machine have what finflow needs?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from finflow_sb3.cli.console import out, print_json
from finflow_sb3.cli.options import Shared, shared_options, shared_settings

if TYPE_CHECKING:
    from finflow_sb3.doctor import Check

__all__ = ["command"]

_STYLES = {"ok": "green", "optional": "yellow", "wrong": "bold red"}


@shared_options
def command(shared: Shared) -> None:
    """Check versions, devices, folders and data; exits with 1 if something needed is wrong."""
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.doctor import examine
    from finflow_sb3.market.cache import cache_folder

    run = shared_settings(shared, None).run
    checks = examine(Path(run.log_dir), cache_folder(), run.device)
    fine = all(check.status != "wrong" for check in checks)
    if shared.json:
        print_json({"ok": fine, "checks": checks})
    else:
        _print_table(checks)
    if not fine:
        raise typer.Exit(1)


def _print_table(checks: list[Check]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "found", "status")
    table.add_column("what to do", overflow="fold")  # a cut command cannot be copied
    for check in checks:
        status = f"[{_STYLES[check.status]}]{check.status}[/]"
        table.add_row(check.name, escape(check.found), status, escape(check.remedy))
    out.print(table)
