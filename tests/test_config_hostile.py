"""Malformed and hostile configurations are refused in one line, and do nothing else."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_helpers import one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from finflow_sb3.cli.app import app
from finflow_sb3.config_arguments import plain_arguments
from finflow_sb3.config_files import named_config, read_config, resolve
from finflow_sb3.config_keys import SECTIONS
from finflow_sb3.config_validate import validate
from finflow_sb3.errors import ConfigError, FinflowError

FUZZ = settings(
    derandomize=True, max_examples=250, deadline=None, suppress_health_check=list(HealthCheck)
)
KEYS = [
    (section, item.name) for section in SECTIONS for item in dataclasses.fields(SECTIONS[section])
]

# Wrong for every setting, whatever its type.
WRONG = [
    *("{zzz: [1]}", "[[[]]]", "[[1, 2], {a: b}]", ".nan", "-.inf", "1e999", '"\\0"', '"\\ud800"'),
    *("!!binary aGVsbG8=", "!!set {a, b}", "!!timestamp 2001-01-01", "!!omap [a: 1]", "!!int x"),
    *("0x" + "f" * 6000, "9" * 400, "1" + "0" * 5000, "!!float x", "!!bool x"),
    *("!!python/object/apply:os.getcwd []", "!!python/name:os.system ''", "!mine {a: 1}"),
    *("{1: 2}", "{[1]: 2}", "{null: 2}", "? {a: 1}", "*nowhere", "&a [*a]", "&a {b: *a}"),
    *("[" * 60 + "]" * 60, "[" * 300, "{" * 300, "{a: 1, a: 2}", "[1, 2", "'open", "%", "@", "`"),
]

junk = st.text(max_size=30)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | junk
    | st.binary(max_size=8)
    | st.dates()
    | st.sampled_from(["lin_", "dict(", "dict(a=b())", "auto_-1", "cvar:9", "cuda:x", "2020-13-40"])
)
names = (
    st.sampled_from([*SECTIONS, *(name for _, name in KEYS), "default", "extends", "algo"]) | junk
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(names | st.integers() | st.booleans(), inner, max_size=5)
    ),
    max_leaves=25,
)


def written(folder: Path, text: str) -> Path:
    path = folder / "my.yml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return path


def readers(path: Path) -> list[Callable[[], object]]:
    """All ways from a file to settings."""
    return [
        lambda: resolve(algo=None, files=[path], environ={}),
        lambda: resolve(algo="cqsac", files=[path], environ={}, preset="stable"),
        lambda: resolve("Pendulum-v1", algo="tqc", files=[path], environ={}),
        lambda: plain_arguments("tqc", files=[path], environ={}),
        lambda: plain_arguments("sac", "Pendulum-v1", files=[path], environ={}),
        lambda: validate(path),
        lambda: read_config(path),
        lambda: named_config(str(path)),
    ]


def refusals(path: Path) -> list[str]:
    """Messages of all readers that refuse the file; anything but a `FinflowError` goes through."""
    found = []
    for reader in readers(path):
        try:
            reader()
        except FinflowError as error:
            found.append(str(error))
    for message in found:
        assert "\n" not in message
        assert len(message) < 2000
        message.encode()
    return found


@FUZZ
@given(key=st.sampled_from(KEYS), wrong=st.sampled_from(WRONG))
def test_a_wrong_value_is_refused_with_its_key_and_line(
    tmp_path_factory: pytest.TempPathFactory, key: tuple[str, str], wrong: str
) -> None:
    folder = tmp_path_factory.mktemp("wrong")
    section, name = key
    path = written(folder, f"default:\n  {section}:\n    {name}: {wrong}\n")
    with pytest.raises(ConfigError) as error:
        resolve(algo=None, files=[path], environ={})
    assert str(path) in one_line(error)
    assert name in one_line(error) or f"{path}:" in one_line(error) or "YAML" in one_line(error)
    with pytest.raises(ConfigError):
        validate(path)
    assert [item.name for item in folder.iterdir()] == ["my.yml"]


@FUZZ
@given(tree=trees, algo=st.sampled_from([None, "iql", "td3bc", "cqsac", "sac", "tqc", 3, "nope"]))
def test_any_tree_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, tree: Any, algo: Any
) -> None:
    path = tmp_path_factory.mktemp("tree")
    content = {"default": tree} if algo is None else {"algo": algo, "default": tree}
    refusals(written(path, yaml.dump(content, allow_unicode=True)))
    refusals(written(path, yaml.dump(tree, allow_unicode=True)))


@FUZZ
@given(data=st.data())
def test_any_damage_to_a_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    text = data.draw(st.sampled_from([DAMAGED_FLAT, DAMAGED_ANCHORS]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 12))
        piece = data.draw(
            junk | st.sampled_from(["\t", "&a", "*a", "<<: ", "!!", "? ", "- ", "\ufeff"])
        )
        text = text[:at] + piece + text[at + cut :]
    refusals(written(tmp_path_factory.mktemp("damaged"), text))


DAMAGED_FLAT = """
finflow/US20-v0:
  run: {seed: 1, device: cpu}
  cqsac:
    learning_rate: lin_3e-4
    policy_kwargs: "dict(n_quantiles=8, critic_hidden=[8, 8])"
    callback:
      - StopTrainingOnMaxEpisodes:
          max_episodes: 3
"""
DAMAGED_ANCHORS = """
algo: tqc
my-defaults: &mine
  policy_kwargs: "dict(net_arch=[8, 8], activation_fn=nn.ReLU)"
  train_freq: [1, "episode"]
Pendulum-v1:
  <<: *mine
  normalize: "{'norm_obs': True}"
  buffer_size: !!float 1e3
"""


@FUZZ
@given(
    key=st.sampled_from([name for _, name in KEYS] + [f"{s}.{n}" for s, n in KEYS]) | junk,
    text=junk | st.sampled_from(WRONG),
)
def test_any_parameter_or_variable_is_read_or_refused_in_one_line(key: str, text: str) -> None:
    variable = f"FINFLOW_{key.upper().replace('.', '__')}"
    for algo in (None, "cqsac", "tqc"):
        for source in ({"params": [f"{key}:{text}"]}, {"environ": {variable: text}}):
            for read in (resolve, plain_arguments if algo == "tqc" else resolve):
                sources: dict[str, Any] = {"algo": algo, "environ": {}, **source}
                try:
                    read(**sources)
                except FinflowError as error:
                    message = str(error)
                    assert "\n" not in message


def bomb(levels: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    return "default:\n  cqsac:\n    policy_kwargs:\n" + "".join(f"      {x}\n" for x in lines)


def merged_bomb(levels: int = 12) -> str:
    lines = ["a0-defaults: &a0 {gamma: 0.5}"]
    for i in range(1, levels):
        lines.append(f"a{i}-defaults: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}")
    return "\n".join(lines)


HOSTILE = {
    "bomb of aliases": (bomb(), "aliases"),
    "bomb of merges": (merged_bomb(), "aliases"),
    "alias of itself": ("default: &a {run: *a}", "itself"),
    "merge of itself": ("default: &a {<<: *a}", "itself"),
    "deep lists": ("default: " + "[" * 3_000, "deep"),
    "deep mappings": ("default: " + "{a: " * 3_000, "deep"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(400)), "deep"),
    "deep text": (f'default: {{policy_kwargs: "{"dict(a=" * 500}1{")" * 500}"}}', "policy_kwargs"),
    "object": ("default: !!python/object/apply:os.mkdir [made]", "python/object"),
    "module": ("default: !!python/module:os {}", "python/module"),
    "new object": ("default: !!python/object/new:os.mkdir {args: [made]}", "python/object"),
    "call in a text": ("default: {iql: {policy_kwargs: \"dict(a=open('made', 'w'))\"}}", "open"),
    "call as an entry": ("default: \"__import__('os').mkdir('made')\"", "mkdir"),
    "callback of a module": ("default: {cqsac: {callback: os.mkdir}}", "os.mkdir"),
    "callback that writes": (
        "default: {cqsac: {callback: {CheckpointCallback: {save_freq: 1, save_path: ../made}}}}",
        "save_path",
    ),
    "two documents": ("default: {}\n---\ndefault: {}", "document"),
    "list": ("- default", "not a mapping"),
    "number": ("3", "not a mapping"),
    "number as key": ("3: {}", "key 3"),
    "tab": ("default:\n\trun: {}", "cannot start"),
    "bell": ('default: {run: "\a"}', "YAML"),
    "twice": ("default: {}\ndefault: {}", "twice"),
    "extends itself": ("extends: my.yml", "ring"),
    "extends a folder": ("extends: sub", "no such file"),
    "extends nothing": ("extends: ''", "extends"),
    "extends zero": ('extends: "a\\0b"', "extends"),
}


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_and_do_nothing(
    tmp_path: Path, monkeypatch: Any, case: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text, part = case
    path = written(tmp_path, text)
    before = resident()
    for words in (["config", "validate", "my.yml"], ["config", "show", "-c", "my.yml"]):
        result = CliRunner().invoke(app, words)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: ")
        assert "my.yml" in result.stderr
        assert result.stderr.count("\n") == 1
        assert part in result.stderr
    assert refusals(path)
    assert [item.name for item in tmp_path.iterdir()] == ["my.yml"]
    assert resident() - before < 200 * 2**20


def resident() -> int:
    """Bytes that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_a_mark_at_the_start_of_a_file_is_no_part_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffdefault: {run: {seed: 3}}")
    assert resolve(algo=None, files=[path], environ={}).run.seed == 3


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfed\x00e\x00",
        b"\x80default: {}",
        b"default: \xed\xa0\x80",
        b"\x00" * 10,
        b"x" * 2**23,
    ],
)
def test_bytes_that_are_no_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "my.yml"
    path.write_bytes(content)
    assert len(refusals(path)) == len(readers(path))


def test_files_without_an_end_or_a_beginning(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path, tmp_path / "nowhere.yml", tmp_path / ("x" * 400)):
        with pytest.raises(FinflowError) as error:
            resolve(algo=None, files=[path], environ={})
        assert str(path)[:20] in str(error.value)


def test_a_long_chain_of_files(tmp_path: Path) -> None:
    for i in range(50):
        (tmp_path / f"{i}.yml").write_text(f"extends: {i + 1}.yml")
    with pytest.raises(ConfigError, match="over 20 files"):
        resolve(algo=None, files=[tmp_path / "0.yml"], environ={})


@pytest.mark.parametrize(
    "words",
    [
        ["config", "validate", "my.yml"],
        ["finetune", "-c", "my.yml"],
        ["pretrain", "-p", "cqsac.batch_size:60000"],
        ["collect", "-p", "train_fraction:0.9"],
    ],
)
def test_the_command_ends_with_one_line_before_anything_starts(
    tmp_path: Path, words: list[str]
) -> None:
    written(tmp_path, bomb())
    command = [sys.executable, "-m", "finflow_sb3.cli.app", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert [item.name for item in tmp_path.iterdir()] == ["my.yml"]
