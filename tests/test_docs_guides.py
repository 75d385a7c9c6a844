"""What the guides say in tables and in two languages is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from finflow_sb3.checks import CHECKS
from finflow_sb3.config import Settings
from finflow_sb3.config_documents import packaged, preset_layer
from finflow_sb3.config_files import resolve

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
GUIDES = [DOCS / "training.md", DOCS / "training.ko.md"]
TRANSLATED = [("README.md", "README.ko.md"), ("docs/training.md", "docs/training.ko.md")]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


def cells_of(line: str) -> list[str]:
    """The cells of a line of a table."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


def rows(page: Path) -> dict[str, list[str]]:
    """Cells of every row of a table, by what stands in it between the first backticks."""
    found = {}
    for line in page.read_text("utf-8").splitlines():
        named = re.match(r"\|[^|]*?`([^`]+)`", line)
        if named:
            found[named[1]] = cells_of(line)
    return found


def checks_in(page: Path) -> dict[str, list[str]]:
    cells = [cells_of(line) for line in page.read_text("utf-8").splitlines()]
    return {
        row[1].strip("`"): row for row in cells if len(row) == 4 and row[1].strip("`") in CHECKS
    }


@pytest.mark.parametrize("page", GUIDES, ids=lambda path: path.name)
def test_monitoring_table_has_the_bounds_of_the_checks(page: Path) -> None:
    table = checks_in(page)
    assert list(table) == list(CHECKS)
    for name, (_, _, normal, warning) in table.items():
        check = CHECKS[name]
        bounds = {abs(float(number)) for number in NUMBER.findall(normal)}
        assert bounds == {check.normal}, name
        assert float(NUMBER.findall(warning)[0]) == check.limit, name


def packaged_values(page: Path) -> dict[str, float | None]:
    """What the tables of settings say is packaged, by setting; None where they say no number."""
    found: dict[str, float | None] = {}
    for cells in rows(page).values():
        names = re.findall(r"`(\w+\.\w+)`", cells[0])
        if len(cells) != 5 or not names:
            continue
        values = [NUMBER.findall(part) for part in cells[1].split(", ")]
        values = values * len(names) if len(values) == 1 else values[: len(names)]
        for name, value in zip(names, values, strict=True):
            found[name] = float(value[0]) if value else None
    return found


@pytest.mark.parametrize("page", GUIDES, ids=lambda path: path.name)
def test_tables_of_settings_have_the_packaged_values(page: Path) -> None:
    settings = resolve(algo=None, environ={}).as_dict()
    settings["env_kwargs"]["trade_rate"] = 0.1  # what null stands for with anchors
    said = packaged_values(page)
    assert len(said) > 20
    for name, value in said.items():
        section, _, key = name.partition(".")
        assert value == settings[section][key], name


@pytest.mark.parametrize("page", GUIDES, ids=lambda path: path.name)
def test_table_of_presets_has_their_values(page: Path) -> None:
    presets = [preset_layer("volatile"), preset_layer("stable")]
    every = {key for layer in presets for key in layer}
    text = page.read_text("utf-8")
    for section, name in every:
        (line,) = re.findall(rf"^\| `{section}\.{name}` \| ([\d.]+) \| ([\d.]+) \|", text, re.M)
        assert [float(value) for value in line] == [layer[section, name].value for layer in presets]


def test_lengths_that_the_guide_names_are_the_packaged_ones() -> None:
    text = (DOCS / "training.md").read_text("utf-8")
    settings = resolve(algo="cqsac", environ={})
    cqsac, run = settings.cqsac, settings.run
    assert f"`warmup_steps` ({cqsac.warmup_steps:,})" in text
    assert f"Then {cqsac.n_envs} portfolios" in text
    assert f"Every {run.evaluate_interval} episodes" in text
    assert f"every {run.checkpoint_interval}\nepisodes there is a checkpoint" in text
    assert f"falls from {cqsac.cql_alpha:g} to {cqsac.cql_alpha_final:g}" in text
    assert cqsac.offline_fraction == 0.25 and "a quarter of each batch" in text
    assert f"noise of {Settings().collect.noise:g}" in text
    assert packaged("iql").entries["default"]["steps_per_epoch"] == 40


def blocks(text: str) -> list[tuple[str, str]]:
    """Blocks of code in their order; the words of a picture in text are a language's own."""
    return [(kind, code) for kind, code in BLOCK.findall(text) if kind != "text"]


def tables(text: str) -> list[list[str]]:
    """Rows of tables, of each what is no word: code and numbers."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [sorted(re.findall(r"`[^`]+`|[−-]?\d[\d,.e-]*", line)) for line in lines]


@pytest.mark.parametrize(("english", "korean"), TRANSLATED)
def test_translations_have_the_same_code_tables_links_and_headings(
    english: str, korean: str
) -> None:
    ours, theirs = ((ROOT / name).read_text("utf-8") for name in (english, korean))
    assert blocks(theirs) == blocks(ours)
    assert tables(theirs) == tables(ours)
    for kind in ("## ", "### ", "!["):
        assert theirs.count(f"\n{kind}") == ours.count(f"\n{kind}"), kind
    links = [set(re.findall(r"\]\(([^)#]+)", text)) for text in (ours, theirs)]
    own = {Path(english).name, Path(korean).name, "docs/training.md", "docs/training.ko.md"}
    assert links[0] - own == links[1] - own


@pytest.mark.parametrize(("english", "korean"), TRANSLATED)
def test_translations_name_the_same_numbers_and_code(english: str, korean: str) -> None:
    """In the text too, however it is ordered; small numbers may be words."""
    ours, theirs = ((ROOT / name).read_text("utf-8") for name in (english, korean))
    for pattern in (r"`([^`\n]+)`", r"(?<![\w.])\d[\d,]*\.?\d+"):
        found = [set(re.findall(pattern, BLOCK.sub("", text))) for text in (ours, theirs)]
        assert found[0] == found[1], pattern
