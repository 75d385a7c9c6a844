"""The table of checks, its bounds, and the settings that are laid over it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finflow_sb3.checks import ACTIONS, CHECKS
from finflow_sb3.config import MonitorSettings, Settings
from finflow_sb3.config_files import read_config, resolve, write_config
from finflow_sb3.config_keys import SECTIONS, key_names
from finflow_sb3.errors import ConfigError

GUIDE = {
    "q_value": (10.0, 100.0),
    "entropy": (0.1, 0.01),
    "actor_loss": (10.0, 50.0),
    "critic_loss": (5.0, 20.0),
    "validation_sharpe": (0.0, -0.5),
}
STEP = 1e-9


@pytest.mark.parametrize(("name", "bounds"), GUIDE.items())
def test_the_methods_own_bounds(name: str, bounds: tuple[float, float]) -> None:
    assert (CHECKS[name].normal, CHECKS[name].limit) == bounds


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_exactly_at_a_bound_is_inside(check: Any) -> None:
    settings = MonitorSettings()
    out = -STEP if check.worse == "below" else STEP
    if check.normal != check.limit:
        assert settings.level(check.name, check.normal) == "ok"
        assert settings.level(check.name, check.normal + out) == "notice"
        assert settings.level(check.name, check.limit) == "notice"
    assert settings.level(check.name, check.limit + out) == "warning"
    assert settings.level(check.name, check.normal - out) == "ok"
    for wild in (math.nan, math.inf, -math.inf):
        assert settings.level(check.name, wild) == "warning"


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("q_value", -10.0, "ok"),
        ("q_value", -10.5, "notice"),
        ("q_value", -100.5, "warning"),
        ("actor_loss", -49.0, "notice"),
        ("actor_loss", -51.0, "warning"),
        ("critic_loss", -51.0, "ok"),
        ("validation_sharpe", -0.3, "notice"),
        ("validation_sharpe", 3.0, "ok"),
        ("not_finite", 0.0, "ok"),
        ("not_finite", 1.0, "warning"),
    ],
)
def test_levels(name: str, value: float, level: str) -> None:
    assert MonitorSettings().level(name, value) == level


def test_defaults_only_warn_but_go_back_from_nan() -> None:
    actions = MonitorSettings().on_warning
    assert actions.pop("not_finite") == "rollback"
    assert set(actions.values()) == {"warn"} and list(actions) == list(CHECKS)[:-1]


def test_mappings_lie_over_the_defaults() -> None:
    settings = resolve(
        algo="cqsac",
        params=[
            "on_warning:{critic_loss: cut_lr, entropy: off}",
            "warning_limits:{critic_loss: 4e1, entropy: 0}",
            "normal_limits:{critic_loss: 9}",
        ],
        environ={},
    ).monitor
    assert settings.on_warning["critic_loss"] == "cut_lr"
    assert settings.on_warning["entropy"] == "off", "YAML reads off as false"
    assert settings.on_warning["q_value"] == "warn"
    assert settings.level("critic_loss", 9.0) == "ok"
    assert settings.level("critic_loss", 40.0) == "notice"
    assert settings.level("critic_loss", 40.1) == "warning"
    assert settings.level("entropy", 0.0) == "notice"
    assert settings.level("q_value", 11.0) == "notice"


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("on_warning:{q_valu: stop}", "monitor.on_warning: unknown check 'q_valu'; did you mean "),
        ("on_warning:{7: stop}", "monitor.on_warning: key 7 is not a text"),
        (
            "on_warning:{q_value: halt}",
            "monitor.on_warning.q_value: 'halt' is not known; known: off, ",
        ),
        ("on_warning:{q_value: on}", "monitor.on_warning.q_value: 'on' is not known; known: off, "),
        ("on_warning:stop", "monitor.on_warning: 'stop' is not a mapping"),
        ("warning_limits:{not_finite: 3}", "unknown check 'not_finite'; known: q_value, "),
        ("warning_limits:{critic_loss: lots}", "critic_loss: 'lots' is not a number"),
        ("warning_limits:{critic_loss: null}", "critic_loss: None is not a number"),
        ("warning_limits:{critic_loss: .nan}", "warning_limits.critic_loss: nan is not a number"),
        ("warning_limits:{critic_loss: .inf}", "warning_limits.critic_loss: inf is not a number"),
        ("normal_limits:{q_value: -10}", "q_value: -10.0 is out of range (0 to inf)"),
        ("warning_limits:{critic_loss: 3}", "3 lies within what is normal (5); set normal_limits"),
        ("warning_limits:{entropy: 0.2}", "0.2 lies within what is normal (0.1); set normal_"),
        ("warning_limits:{validation_sharpe: 0.1}", "0.1 lies within what is normal (0); set "),
        ("cut_factor:1", "monitor.cut_factor: 1.0 is out of range (0.001 to 0.999)"),
        ("patience:0", "monitor.patience: 0 is out of range (1 to 1000000)"),
        ("monitor.cooldwn:3", "unknown setting of monitor 'cooldwn'; did you mean 'cooldown'?"),
    ],
)
def test_wrong_settings_are_refused(param: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(algo="cqsac", params=[param], environ={})
    text = str(caught.value)
    assert text.startswith(f"--param {param}: ") and "\n" not in text
    assert message in text


def test_bare_names_are_the_monitors_alone() -> None:
    for name in key_names("monitor"):
        owners = [section for section in SECTIONS if name in key_names(section)]
        assert owners == ["monitor"]


bounded = [name for name, check in CHECKS.items() if not check.fixed]


@given(
    st.dictionaries(st.sampled_from(list(CHECKS)), st.sampled_from(ACTIONS)),
    st.dictionaries(st.sampled_from(bounded), st.floats(1e-6, 1e6)),
    st.none() | st.integers(1, 100),
)
def test_settings_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    actions: dict[str, Any],
    bounds: dict[str, float],
    patience: int | None,
) -> None:
    monitor = MonitorSettings(
        on_warning=actions, warning_limits=bounds, normal_limits=bounds, patience=patience
    )
    settings = Settings(monitor=monitor)
    path: Path = tmp_path_factory.mktemp("config") / "config.yml"
    write_config(settings, path)
    assert read_config(path).monitor == monitor


def test_the_table_is_light() -> None:
    code = "import sys, finflow_sb3.checks\nassert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def test_the_page_has_the_same_bounds() -> None:
    page = Path(__file__).parents[1] / "docs" / "stability.md"
    rows = {name: (normal, warning) for name, normal, warning in ROW.findall(page.read_text())}
    for name, check in CHECKS.items():
        normal, warning = rows[name]
        if not check.fixed:
            assert f"{check.normal:g}" in re.findall(r"−?[\d.]+", normal)
            assert f"{check.limit:g}".replace("-", "−") in re.findall(r"−?[\d.]+", warning)
        assert ("under" in warning) == (check.worse == "below")
        assert ("magnitude" in warning) == (check.worse == "away")
