"""Rules of a user's own: what they see, what they may give, and where they come from."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from checkers import check_budget
from markets import batch_of, small_market

from finflow_sb3.config import BEHAVIOURS, CollectSettings, EnvSettings
from finflow_sb3.config_files import resolve
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import observe
from finflow_sb3.errors import ArtefactError, ConfigError, DataError, FinflowError
from finflow_sb3.market.splits import Span
from finflow_sb3.offline.behaviours import RULES
from finflow_sb3.offline.collect import cached_dataset, collect_dataset, dataset_key
from finflow_sb3.offline.own import NOTHING, Own, noted, require_same
from finflow_sb3.offline.own_rules import OwnRule, Past, own_rules, past_of

ENV = EnvSettings(episode_length=12)
COLLECT = CollectSettings(episodes=20, n_envs=8)
TREND = """\
import numpy as np

def trend(past):
    rose = past.close[-1] > past.close[-63:].mean(axis=0)
    return rose / len(rose)

def cash(past):
    return np.append(np.zeros(len(past.assets)), 1.0)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Writes `own_module.py`, to be imported anew, into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> Path:
        sys.modules.pop("own_module", None)
        importlib.invalidate_caches()
        path = tmp_path / "own_module.py"
        path.write_text(text)
        return path

    write(TREND)
    yield write
    sys.modules.pop("own_module", None)


def equal(past: Past) -> Any:
    return np.full(len(past.assets), 1.0 / len(past.assets))


def test_the_registry_has_the_names_of_the_settings() -> None:
    assert tuple(RULES) == BEHAVIOURS


# ------------------------------------------------------------------ what a rule sees


@pytest.mark.parametrize("row", [300, 410])
def test_a_rule_sees_the_past_and_no_more(row: int) -> None:
    market = small_market()
    batch = batch_of(market, span=Span(row, row + 40))
    past = past_of(batch, 0)
    prices = market.prices
    assert past.dates[-1] == prices.dates[row]
    assert past.assets == prices.assets
    np.testing.assert_array_equal(past.close, prices.close[: row + 1])
    np.testing.assert_array_equal(past.cash_rate, prices.cash_rate[: row + 1])
    np.testing.assert_array_equal(past.held, batch.held[0])
    assert tuple(past.anchors) == market.anchors.names
    np.testing.assert_array_equal(np.stack(list(past.anchors.values())), market.anchors.at(row))


def test_a_rule_that_looks_for_the_future_finds_none() -> None:
    """No array leads to a longer one, and none can be written to."""
    market = small_market()
    seen: list[int] = []

    def curious(past: Past) -> Any:
        arrays = [past.dates, past.close, past.cash_rate, past.held, *past.anchors.values()]
        for array in arrays:
            assert array.base is None
            with pytest.raises(ValueError, match="read-only"):
                array[0] = array[0]
        seen.append(max(len(array) for array in arrays[:3]))
        with pytest.raises(dataclasses.FrozenInstanceError):
            past.close = past.close  # type: ignore[misc]
        return equal(past)

    (rule,) = own_rules([curious])
    batch = batch_of(market, span=Span(300, 340))
    rule.target(batch, 0)
    assert seen == [301]


def test_what_follows_a_row_changes_nothing(module: Any) -> None:
    """A price table that ends with the row gives the weights that the whole one gives."""
    whole = small_market()
    settings = dataclasses.replace(whole.settings, train_fraction=0.5, validation_fraction=0.25)
    (rule,) = own_rules(["own_module:trend"])
    for row in (480, 540):
        cut = observe(whole.prices.rows(0, row + 2), settings, whole.env, whole.scaler)
        targets = [
            rule.target(batch_of(market, span=Span(row, row + 2)), 0) for market in (whole, cut)
        ]
        np.testing.assert_array_equal(*targets)
        assert 0.0 < targets[0][-1] < 1.0  # some assets rose, some fell


# ------------------------------------------------------------------ what a rule gives


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ([0.2, 0.2, 0.2, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2, 0.0]),
        ([0.5, 0, 0, 0, 0], [0.5, 0, 0, 0, 0, 0.5]),
        ([0.5, 0, 0, 0, 0, 0.5], [0.5, 0, 0, 0, 0, 0.5]),
        ([0.5, 0, 0, 0, 0, 0.1], [0.5, 0, 0, 0, 0, 0.5]),
        ((0, 0, 0, 0, 0), [0, 0, 0, 0, 0, 1]),
        ([1.0 + 9e-7, -9e-7, 0, 0, 0], [1, 0, 0, 0, 0, 0]),
        (pd.Series([0.4, 0.6], ["S03", "S00"]), [0.6, 0, 0, 0.4, 0, 0]),
        (pd.Series([0.2, 0.5], ["Cash", "S01"]), [0, 0.5, 0, 0, 0, 0.5]),
        (pd.Series([0.1, 0.2, 0, 0, 0]), [0.1, 0.2, 0, 0, 0, 0.7]),
    ],
)
def test_what_is_missing_to_one_is_cash(given: Any, whole: list[float]) -> None:
    (rule,) = own_rules([lambda _: given])
    target = rule.target(batch_of(small_market()), 0)
    check_budget(target)
    np.testing.assert_allclose(target, whole, atol=2e-6)


def failing(past: Past) -> Any:
    return past.close[0] / {}["no such key"]


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ([0.5, 0.6, 0, 0, 0], "gave weights that sum to 1.1, more than 1"),
        ([0.5, 0.5, 0, 0, 0, 0.1], "gave weights that sum to 1.1, more than 1"),
        ([0.5, -0.1, 0, 0, 0], "gave -0.1 as weight 2, below zero"),
        ([0.5, np.nan, 0, 0, 0], "gave nan as weight 2"),
        ([0.5, 0, np.inf, 0, 0], "gave inf as weight 3"),
        ([0.5, 0.5], r"shape \(2,\), expected \(5,\), or \(6,\) with cash last"),
        ([[0.2] * 5], r"shape \(1, 5\)"),
        (None, r"gave nan|gave weights of shape \(\)"),
        ({"S00": 1.0}, "gave {'S00': 1.0}, which are no weights"),
        ("equal", "gave 'equal', which are no weights"),
        ([10**400, 0, 0, 0, 0], "gave .*, which are no weights"),
        (torch.zeros(5, requires_grad=True), "gave tensor.*, which are no weights"),
        (pd.Series([1.0], ["S1"]), "gave a weight to 'S1', which is no asset .did you mean 'S"),
        (pd.Series([0.5, 0.5], ["S01", "S01"]), "gave 'S01' two weights"),
        (pd.Series([0.5, None], ["S01", "S02"]), "gave nan as weight 3"),
    ],
)
def test_what_is_no_allocation_is_refused(given: Any, part: str) -> None:
    market = small_market()

    def wrong(past: Past) -> Any:
        return given

    with pytest.raises(DataError, match=part) as caught:
        collect_dataset(market, ENV, COLLECT, 0, own=Own(own_rules([wrong]), alone=True))
    line = str(caught.value)
    assert "\n" not in line
    assert line.endswith("; correct the rule")
    name, date = line.split(": on ")
    assert name.endswith("wrong")
    assert np.datetime64(date[:10]) in market.prices.dates


def test_a_rule_that_fails_is_named_with_its_line() -> None:
    (rule,) = own_rules([failing])
    line = failing.__code__.co_firstlineno + 1
    why = rf"failing: on \d{{4}}-\d\d-\d\d it raised KeyError: 'no such key' \(.*py, line {line}\)"
    with pytest.raises(DataError, match=why) as caught:
        rule.target(batch_of(small_market()), 0)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_rule_that_leaves_python_is_named() -> None:
    def leaving(past: Past) -> Any:
        sys.exit(0)

    (rule,) = own_rules([leaving])
    with pytest.raises(DataError, match="it raised SystemExit: 0"):
        rule.target(batch_of(small_market()), 0)


# ------------------------------------------------------------------ where it comes from


@pytest.mark.parametrize(
    ("text", "name", "part"),
    [
        (TREND, "trend", "'trend' is not module:function, as in my_rules:trend"),
        (TREND, "own_module.py:trend", "there is no module 'own_module.py'"),
        (TREND, "own module:trend", "is not module:function"),
        (TREND, "own_module:trend()", "is not module:function"),
        (TREND, ":trend", "is not module:function"),
        (TREND, "own_modul:trend", "there is no module 'own_modul'.*own_modul.py lies in"),
        (TREND, "own_module:trned", "has no function 'trned'; did you mean 'trend'?"),
        ("trend = 3", "own_module:trend", "has no function 'trend'; name one that it has"),
        ("import no_such_lib", "own_module:trend", "ModuleNotFoundError: .*'no_such_lib'"),
        ("1 / 0", "own_module:trend", r"ZeroDivisionError: .*\(own_module.py, line 1\)"),
        ("import sys; sys.exit(0)", "own_module:trend", r"SystemExit: 0 \(own_module.py, line 1\)"),
        ("def trend(past", "own_module:trend", r"SyntaxError: .*own_module.py, line 1"),
    ],
)
def test_names_that_lead_nowhere(module: Any, text: str, name: str, part: str) -> None:
    module(text)
    with pytest.raises(ConfigError, match=part) as caught:
        own_rules([name])
    assert "\n" not in str(caught.value)


def test_a_file_here_does_not_stand_in_for_a_library(module: Any, tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("def trend(past): raise SystemExit\n")
    with pytest.raises(ConfigError, match=r"lib.*colorsys\.py has no function 'trend'"):
        own_rules(["colorsys:trend"])


@pytest.mark.parametrize("given", [3, [0.5, 0.5], None])
def test_what_is_no_function(given: Any) -> None:
    with pytest.raises(ConfigError, match="is no rule"):
        own_rules([given])


def test_two_of_one_name() -> None:
    with pytest.raises(ConfigError, match="two rules are called so"):
        own_rules([equal, equal])


@pytest.mark.parametrize(
    "make",
    [
        lambda path: resolve(algo=None, files=[path]),
        lambda path: resolve(algo=None, params=["collect.behaviours:os:getcwd"]),
        lambda path: CollectSettings(behaviours=("os:getcwd",)),
    ],
    ids=["file", "param", "python"],
)
def test_settings_name_no_code(make: Callable[[Path], Any], tmp_path: Path) -> None:
    """Nothing that is read leads to an import; the message says how it is done."""
    path = tmp_path / "settings.yml"
    path.write_text("default:\n  collect:\n    behaviours: [anchor, 'os:getcwd']\n")
    with pytest.raises(ConfigError, match=r"'os:getcwd' is code.*--behaviour os:getcwd"):
        make(path)


# ------------------------------------------------------------------ in a dataset


def test_own_rules_take_turns_with_the_others(module: Any) -> None:
    market = small_market()
    own = Own(own_rules(["own_module:trend", equal]))
    names = ("own_module:trend", f"{__name__}:equal")
    data = collect_dataset(market, ENV, COLLECT, 0, own=own)
    assert data.behaviours == (*BEHAVIOURS, *names)
    np.testing.assert_array_equal(data.behaviour, np.arange(20) % 10)
    assert data.settings["own"]["behaviours"][0][0] == names[0]
    again = collect_dataset(market, ENV, COLLECT, 0, own=own)
    np.testing.assert_array_equal(data.action, again.action)
    alone = collect_dataset(market, ENV, COLLECT, 0, own=dataclasses.replace(own, alone=True))
    np.testing.assert_array_equal(alone.behaviour, 8 + np.arange(20) % 2)
    assert alone.transitions_by_behaviour() == dict.fromkeys(names, 120)


def test_what_a_rule_wants_is_what_is_traded() -> None:
    """Where actions reach all and nothing is in the way, the portfolio holds the rule's weights."""
    env = dataclasses.replace(ENV, action_base="none")
    market = small_market(EnvSettings(action_base="none"))
    fixed = np.array([0.4, 0.1, 0.2, 0.05, 0.2])

    def given(past: Past) -> Any:
        return fixed

    collect = CollectSettings(episodes=3, n_envs=3, noise=0.0)
    data = collect_dataset(market, env, collect, 0, own=Own(own_rules([given]), alone=True))
    held = data.states[1:13, :6].astype(np.float64)
    growth = 1.0 + market.returns[data.row[:12] + 1]
    before = held / growth
    before /= before.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(before, np.tile([*fixed, 0.05], (12, 1)), atol=1e-6)
    assert data.distance.max() < 1e-6


def test_the_known_rules_trade_as_they_do_without_it() -> None:
    """A rule of one's own draws nothing: the episodes beside it keep their bits."""
    market, collect = small_market(), CollectSettings(episodes=9, n_envs=9)
    without = collect_dataset(market, ENV, collect, 0)
    beside = collect_dataset(market, ENV, collect, 0, own=Own(own_rules([equal])))
    np.testing.assert_array_equal(without.behaviour, [*range(8), 0])
    np.testing.assert_array_equal(beside.behaviour, range(9))
    np.testing.assert_array_equal(without.action[:96], beside.action[:96])
    assert "own" not in without.settings


# ------------------------------------------------------------------ the cache, and going on


def test_the_key_holds_the_file_of_a_rule(module: Any) -> None:
    market = small_market()

    def key(*names: str) -> str:
        return dataset_key(market, ENV, COLLECT, 0, Own(own_rules(names)))

    found = [
        dataset_key(market, ENV, COLLECT, 0),
        key("own_module:trend"),
        key("own_module:cash"),
        key("own_module:trend", "own_module:cash"),
        key("own_module:cash", "own_module:trend"),
    ]
    assert key("own_module:trend") == found[1]
    module(TREND.replace("-63", "-126"))
    found.append(key("own_module:trend"))
    assert len(set(found)) == len(found)
    assert found[0] == dataset_key(market, ENV, COLLECT, 0, NOTHING)


def closure() -> Callable[[Past], Any]:
    share = 0.5
    return lambda past: share * equal(past)


def stale(write: Callable[[str], Path]) -> OwnRule:
    """A function whose file was written anew, and which was not imported anew."""
    imported = importlib.import_module("own_module").trend
    Path(imported.__code__.co_filename).write_text(TREND.replace("-63", "-126"))
    return own_rules([imported])[0]


@pytest.mark.parametrize("now", [b"def trend(past", b"# caf\xe9\n", b"# coding: nonsense\n", b"\0"])
def test_a_file_that_is_no_module_any_more_says_nothing(
    module: Any, tmp_path: Path, now: bytes
) -> None:
    imported = own_rules(["own_module:trend"])[0].function
    (tmp_path / "own_module.py").write_bytes(now)
    assert own_rules([imported])[0].source is None


def test_a_file_in_another_encoding_has_a_hash(module: Any, tmp_path: Path) -> None:
    (tmp_path / "own_module.py").write_bytes(b"# coding: latin-1\n# caf\xe9\n" + TREND.encode())
    assert own_rules(["own_module:trend"])[0].source is not None


@pytest.mark.parametrize("kind", ["closure", "lambda", "object", "stale"])
def test_a_rule_that_no_file_tells_apart_is_not_cached(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("FINFLOW_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)

    class Equal:
        def __call__(self, past: Past) -> Any:
            return equal(past)

    given: dict[str, Any] = {
        "closure": closure,
        "lambda": lambda: lambda _: np.full(5, 0.1),
        "object": Equal,
        "stale": lambda: stale(module),
    }
    own = Own(own_rules([given[kind]()]))
    with pytest.raises(ConfigError, match="collect to a file"):
        cached_dataset(small_market(), ENV, COLLECT, 0, own=own)
    assert not (tmp_path / "cache" / "datasets").exists()
    assert len(collect_dataset(small_market(), ENV, COLLECT, 0, own=own)) == 240


def test_the_cache_has_datasets_of_own_rules(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINFLOW_CACHE_DIR", str(tmp_path / "cache"))
    own = Own(own_rules(["own_module:trend"]))
    first, path = cached_dataset(small_market(), ENV, COLLECT, 0, own=own)
    monkeypatch.setattr(PortfolioBatch, "step", None)
    second, same = cached_dataset(small_market(), ENV, COLLECT, 0, own=own)
    assert path == same
    np.testing.assert_array_equal(first.action, second.action)


@pytest.mark.parametrize(
    ("before", "now", "part"),
    [
        (["a:f"], [], "begun with --behaviour a:f; give the same again"),
        (["a:f", "a:g"], ["a:g", "a:f"], "begun with --behaviour a:f --behaviour a:g; give"),
        ([], ["a:f"], "begun with the settings' rules alone; leave out"),
        (["a:f"], ["a:f2"], "begun with --behaviour a:f; give"),
    ],
)
def test_what_goes_on_has_the_rules_that_it_had(
    before: list[str], now: list[str], part: str
) -> None:
    def note(names: list[str], source: str = "1") -> dict[str, Any]:
        return noted([OwnRule(name, equal, source) for name in names], [], False)

    require_same(note(before), note(before), "run")
    with pytest.raises(FinflowError, match=f"run: was {part}"):
        require_same(note(before), note(now), "run")
    if before:
        with pytest.raises(FinflowError, match="run: a:f has changed since it was begun"):
            require_same(note(before), note(before, "2"), "run")


@pytest.mark.parametrize(("before", "now"), [(None, None), ("1", None), (None, "1")])
def test_what_goes_on_has_rules_that_can_be_compared(before: str | None, now: str | None) -> None:
    notes = [noted([OwnRule("a:f", equal, source)], [], False) for source in (before, now)]
    with pytest.raises(ArtefactError, match=r"run: a:f is no plain function.*begin again"):
        require_same(*notes, "run")


def test_own_alone_needs_something() -> None:
    with pytest.raises(ConfigError, match="leaves no behaviour at all"):
        Own(alone=True)


def test_too_few_episodes_for_every_rule_to_have_one() -> None:
    collect = CollectSettings(episodes=8)
    with pytest.raises(ConfigError, match=r"8 are too few for .*equal to have one: 9 rules"):
        collect_dataset(small_market(), ENV, collect, 0, own=Own(own_rules([equal])))
