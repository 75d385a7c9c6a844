"""Settings that are valid, drawn from the types and ranges that their fields declare."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal

from hypothesis import assume
from hypothesis import strategies as st

from finflow_sb3.checks import ACTIONS, CHECKS
from finflow_sb3.config import BEHAVIOURS, Settings
from finflow_sb3.config_checks import Contradiction
from finflow_sb3.config_evaluation import BASELINES
from finflow_sb3.config_keys import SECTIONS

TRICKY = [
    *("1e-3", "null", "yes", "2015-12-31", "0x1", "1_000", "lin_3e-4", "~", "#", "a: b"),
    *("- a", " a ", "a\n", "\x85", "a\u2028b", "한국 " * 60, "\ufeff", "!x", "&a", "*a", "'", '"'),
]
texts = st.text(min_size=1, max_size=12).filter(lambda s: "\0" not in s) | st.sampled_from(TRICKY)
dates = st.dates().map(lambda day: day.isoformat())
SIZES = st.fixed_dictionaries(
    {},
    optional={
        "expert_hidden": st.integers(1, 64),
        "critic_hidden": st.lists(st.integers(1, 64), min_size=1, max_size=3),
        "n_quantiles": st.integers(3, 64),
        "mixture": st.sampled_from(["soft", "full"]),
        "dropout": st.floats(0.0, 0.99),
        "layer_norm": st.booleans(),
    },
)
trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts.filter(lambda key: key != "activation_fn"), inner, max_size=3)
    ),
    max_leaves=6,
)
# A larger one is past it for these.
BOUNDED = st.sampled_from(
    [name for name, c in CHECKS.items() if not c.fixed and c.worse != "below"]
)
# Where a type and a range do not say all.
by_asset = st.dictionaries(texts, st.floats(0.0, 0.2), max_size=3)
FORMS: dict[str, st.SearchStrategy[Any]] = {
    "train_end": st.none() | dates,
    "validation_end": st.none() | dates,
    "train_start": st.none() | dates,
    "test_end": st.none() | dates,
    "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
    "learning_rate": st.floats(0.0, 100.0) | st.sampled_from(["lin_3e-4", "lin_1"]),
    "risk_measure": st.sampled_from(["neutral", "cvar:0.25", "wang:-0.75"]),
    "ent_coef": st.floats(0.0, 10.0) | st.sampled_from(["auto", "auto_0.1", "0.1"]),
    "target_entropy": st.floats(-50.0, 50.0) | st.sampled_from(["auto", "seeded", "-3"]),
    "behaviours": st.lists(st.sampled_from(BEHAVIOURS), min_size=1, max_size=4).map(tuple),
    "baselines": st.lists(st.sampled_from(BASELINES), min_size=1, max_size=4).map(tuple),
    "block": st.integers(1, 252) | st.just("auto"),
    "stress": st.dictionaries(texts, st.just(["2008-09-01", "2009-03-31"]), max_size=3),
    "fees": by_asset,
    "min_position": st.floats(0.0, 1.0) | by_asset,
    "max_position": st.none() | st.floats(0.0, 1.0) | by_asset,
    "groups": st.dictionaries(texts, st.lists(texts, min_size=1, max_size=1), max_size=1),
    "group_limits": st.dictionaries(texts, st.just([0.0, 0.5]), max_size=1),
    "policy": st.sampled_from(["MultiExpertPolicy", "MlpPolicy"]),
    "policy_kwargs": SIZES | st.builds(lambda tree: {"optimizer_kwargs": {"a": tree}}, trees),
    "on_warning": st.dictionaries(st.sampled_from(list(CHECKS)), st.sampled_from(ACTIONS)),
    "warning_limits": st.dictionaries(BOUNDED, st.floats(1e6, 1e9)),
    "normal_limits": st.dictionaries(BOUNDED, st.just(0.001)),
    "normalize": st.just(False) | st.fixed_dictionaries({"norm_obs": st.booleans()}),
    "callback": st.sampled_from(
        [
            (),
            ("EvalCallback",),
            ({"StopTrainingOnMaxEpisodes": {"max_episodes": 3}}, "EvalCallback"),
            ({"CheckpointCallback": {"save_freq": 10, "name_prefix": "a-b.c"}},),
        ]
    ),
}


def of_type(hint: Any, low: float | None, high: float | None) -> st.SearchStrategy[Any]:
    """Values of a field of this type and range."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return st.sampled_from(options)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([of_type(option, low, high) for option in options])
    if origin is tuple:
        return st.lists(of_type(options[0], low, high), min_size=1, max_size=4).map(tuple)
    if hint is int:
        whole = [None if bound is None else int(bound) for bound in (low, high)]
        return st.integers(*whole)
    if hint is float:
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    kinds = {bool: st.booleans(), str: texts, type(None): st.none()}
    return kinds[hint]


def field_values(item: Any, hint: Any) -> st.SearchStrategy[Any]:
    if item.name in FORMS:
        return FORMS[item.name]
    return of_type(hint, item.metadata["low"], item.metadata["high"])


@st.composite
def sections(draw: st.DrawFn, kind: Any) -> Any:
    """One section with a handful of its fields changed."""
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    names = draw(st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=6))
    return kind(**{name: draw(field_values(fields[name], hints[name])) for name in names})


@st.composite
def valid_settings(draw: st.DrawFn) -> Settings:
    """Settings of every section, whichever there are."""
    env = draw(st.sampled_from(["finflow/US20-v0", "finflow/Portfolio-v0", "Pendulum-v1"]))
    drawn = {name: draw(sections(kind)) for name, kind in SECTIONS.items()}
    try:
        return Settings(env=env, **drawn)
    except Contradiction:
        assume(False)
        raise AssertionError from None
