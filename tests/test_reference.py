"""Generated pages of the documentation: they have all that the code has, and say the same."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml

import finflow_sb3
from finflow_sb3.cli.app import app
from finflow_sb3.config_files import resolve
from finflow_sb3.config_keys import PLAIN_ALGORITHMS, SECTIONS, key_names
from finflow_sb3.config_plain import PLAIN

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
EVERY = [(section, name) for section in SECTIONS for name in key_names(section)]


def hook(name: str) -> ModuleType:
    """A module of docs/hooks, which MkDocs loads from there by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "hooks"))
        return importlib.import_module(name)


def built(name: str) -> str:
    """A page as the site has it, in Markdown."""
    return str(hook("pages").filled((DOCS / name).read_text("utf-8")))


def section_of(page: str, title: str, level: str = "##") -> str:
    """What stands below one heading of a page."""
    parts = re.split(rf"^{level} ", page, flags=re.MULTILINE)
    (found,) = [part for part in parts if part.splitlines()[0] == title]
    return found


def cells_of(table: str, name: str) -> list[str]:
    """The cells of the row of one setting or option."""
    rows = [line for line in table.splitlines() if line.startswith(f"| `{name}`")]
    assert len(rows) == 1, f"{len(rows)} rows of {name}"
    return [cell.strip() for cell in rows[0].strip("| ").split(" | ")]


@pytest.mark.parametrize(("section", "name"), EVERY, ids=lambda value: value)
def test_every_setting_has_a_row_with_its_default(section: str, name: str) -> None:
    cells = cells_of(section_of(built("reference/settings.md"), section), name)
    (field,) = [f for f in dataclasses.fields(SECTIONS[section]) if f.name == name]
    default = getattr(SECTIONS[section](), name)
    if isinstance(default, bool):
        assert cells[1] == f"`{str(default).lower()}`"
    elif isinstance(default, (int, float)):
        assert float(cells[1].strip("`")) == default
    elif isinstance(default, str):
        assert cells[1] == f"`{default}`"
    assert cells[-1].startswith(field.metadata["help"].split("|")[0].split("<")[0].strip())


def test_packaged_values_and_presets_are_named() -> None:
    page = section_of(built("reference/settings.md"), "cqsac")
    packaged = resolve(algo="cqsac", environ={}).cqsac
    volatile = resolve(algo="cqsac", preset="volatile", environ={}).cqsac
    cells = cells_of(page, "cql_alpha")
    assert f"`{packaged.cql_alpha:g}` (cqsac.yml)" in cells[2]
    assert f"`{volatile.cql_alpha:g}` (--preset volatile)" in cells[2]
    assert cells_of(page, "gamma")[3] == "0 to 1"
    assert cells_of(page, "buffer_size")[3] == "1 to 1,000,000,000"


@pytest.mark.parametrize("algo", PLAIN_ALGORITHMS)
def test_every_argument_of_sb3s_algorithms_has_a_row(algo: str) -> None:
    page = section_of(built("reference/settings.md"), algo, "###")
    for field in dataclasses.fields(PLAIN[algo]):
        assert cells_of(page, field.name)


def commands() -> list[tuple[str, object]]:
    """Every command by its full name, found in another way than the page's."""
    root = typer.main.get_command(app)
    found = []
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        found += [(f"{name} {n}", c) for n, c in inner.items()] if inner else [(name, command)]
    return [pytest.param(name, command, id=name) for name, command in found]


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_has_a_section_with_its_options(name: str, command: object) -> None:
    page = built("reference/commands.md")
    section = section_of(page, f"finflow {name}")
    shared = section_of(page, "Shared options")
    for param in command.params:
        if param.param_type_name == "argument":
            placeholder = (param.metavar or param.name).upper()
            assert re.search(rf"^\| `\[?{re.escape(placeholder)}", section, re.MULTILINE)
            continue
        if param.hidden:
            assert f"`{param.opts[0]}`" not in section
            continue
        table = section if param.rich_help_panel is None else shared
        for option in [*param.opts, *param.secondary_opts]:
            assert f"`{option}`" in table
        if isinstance(param.default, int) and not isinstance(param.default, bool):
            assert f"`{param.default}`" in table


@pytest.mark.parametrize("name", sorted(set(finflow_sb3.__all__) - {"__version__"}))
def test_every_public_name_has_its_place(name: str) -> None:
    own = finflow_sb3._OWN_NAMES.get(name, name)
    directive = f"::: finflow_sb3.{finflow_sb3._HOMES[name]}.{own}"
    assert built("reference/api.md").splitlines().count(directive) == 1


def test_docstrings_of_the_house_become_markdown() -> None:
    text = hook("docstrings").as_markdown(
        "Summary with ``code``.\n\nParameters\n----------\na, b : shape [B],\n    of both\n"
        "rest\n\nRaises\n------\nConfigError\n    If it is wrong.\n"
    )
    assert text.splitlines() == [
        "Summary with `code`.",
        "",
        "",
        "**Parameters**",
        "",
        "- `a, b`: shape [B],",
        "    of both",
        "- `rest`:",
        "",
        "",
        "**Raises**",
        "",
        "- `ConfigError`:",
        "    If it is wrong.",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_markers_are_filled_in(page: Path) -> None:
    assert "<!-- generated" not in built(str(page.relative_to(DOCS)))


def test_links_out_of_the_documentation_become_names() -> None:
    change = hook("pages").without_links_outside
    text = "[a](../../examples/a.py), [b](../training.md), [c](https://x.org)"
    assert change(text, Path("extend")) == "a, [b](../training.md), [c](https://x.org)"


def nav_pages(entries: list[object]) -> list[str]:
    """File names in a nav, in order."""
    found = []
    for entry in entries:
        inner = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += nav_pages(inner) if isinstance(inner, list) else [inner]
    return found


def test_every_page_is_in_the_nav_once() -> None:
    content = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    listed = nav_pages(content["nav"])
    assert sorted(listed) == sorted(p.relative_to(DOCS).as_posix() for p in PAGES)


def test_the_settings_that_matter_exist() -> None:
    """What the table of importance names in full are settings."""
    table = section_of(built("reference/settings.md"), "What matters most")
    known = {f"{section}.{name}" for section, name in EVERY}
    names = re.findall(r"`(\w+\.\w+)`", table)
    assert names and set(names) <= known
    bare = set(re.findall(r"`([a-z]\w+)`", table)) - {"seeded", "null"}
    assert bare <= {name for _, name in EVERY}
