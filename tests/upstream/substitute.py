"""A pytest plugin: another project's tests, with CQSAC in the place of one of its algorithms.

    PYTHONPATH=tests/upstream python -m pytest -p substitute --in-place-of SAC <their tests>

`stable_baselines3.SAC` or `sb3_contrib.TQC` is CQSAC before their test modules are imported. Of
their tests those are run that have it as a parameter, and those without an algorithm for a
parameter whose code, or a function of its file that it calls, names it. A test counts where a
CQSAC was in fact set up. `nox -s upstream` gets their tests and runs all of this.
"""

from __future__ import annotations

import functools
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import sb3_contrib
import stable_baselines3
from left_out import LEFT_OUT
from stable_baselines3.common.base_class import BaseAlgorithm

from finflow_sb3.cqsac.cqsac import CQSAC

HOMES = {"SAC": stable_baselines3, "TQC": sb3_contrib}
PROPERTY = "cqsac"
set_up: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--in-place-of", choices=sorted(HOMES), required=True)


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("in_place_of")
    setattr(HOMES[name], name, CQSAC)
    original = CQSAC._setup_model

    @functools.wraps(original)
    def counted(self: CQSAC) -> None:
        set_up[PROPERTY] += 1
        original(self)

    CQSAC._setup_model = counted  # type: ignore[method-assign]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    left_out = LEFT_OUT[HOMES[config.getoption("in_place_of")].__name__]
    chosen = {item.function for item in items if _is_given_cqsac(item)}
    kept, dropped = [], []
    for item in items:
        if _is_given_cqsac(item) or (item.function not in chosen and _names_cqsac(item)):
            kept.append(item)
        else:
            dropped.append(item)
        reason = left_out.get(f"{item.path.name}::{item.name}")
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    set_up.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.when == "call":
        item.user_properties.append((PROPERTY, set_up[PROPERTY]))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    met = _outcomes(terminalreporter)
    terminalreporter.write_line(
        f"CQSAC in place of {config.getoption('in_place_of')}: {met.total()} tests set one up, "
        f"{met['passed']} passed, {met['failed']} failed, {met['xfailed']} left out"
    )
    for report in terminalreporter.getreports("xfailed"):
        terminalreporter.write_line(f"  left out: {report.nodeid}: {report.wasxfail}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tests that passed without a CQSAC show nothing: the substitution has failed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and not session.config.option.collectonly and not _outcomes(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _outcomes(reporter: Any) -> Counter[str]:
    """How the tests ended in which a CQSAC was set up."""
    reports = [
        (outcome, report)
        for outcome in ("passed", "failed", "xfailed")
        for report in reporter.getreports(outcome)
    ]
    return Counter(
        outcome
        for outcome, report in reports
        if report.when == "call" and dict(report.user_properties).get(PROPERTY, 0)
    )


def _parameters(item: pytest.Function) -> list[Any]:
    return list(item.callspec.params.values()) if hasattr(item, "callspec") else []


def _is_given_cqsac(item: pytest.Function) -> bool:
    return any(value is CQSAC for value in _parameters(item))  # arrays have no plain ==


def _names_cqsac(item: pytest.Function) -> bool:
    """No parameter is another algorithm, and the test's code comes upon CQSAC."""
    if any(
        isinstance(value, type) and issubclass(value, BaseAlgorithm) for value in _parameters(item)
    ):
        return False
    return any(_holds_cqsac(value) for value in _globals_of(item.function, set()))


def _holds_cqsac(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_cqsac(part) for part in [*value, *value.values()])
    if isinstance(value, list | tuple | set):
        return any(_holds_cqsac(part) for part in value)
    return value is CQSAC


def _globals_of(function: types.FunctionType, seen: set[str]) -> Iterator[Any]:
    """Values of the module's names in `function` and in functions of its module it names."""
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if name in seen or value is None:
            continue
        seen.add(name)
        yield value
        if isinstance(value, types.FunctionType) and value.__module__ == function.__module__:
            yield from _globals_of(value, seen)
