"""A resolved configuration as YAML: in our own form, or in plain rl-baselines3-zoo's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from textwrap import indent
from typing import Any

from finflow_sb3.config import OFFLINE_ALGORITHMS, CQSACSettings, Settings
from finflow_sb3.config_arguments import PlainArguments
from finflow_sb3.config_checks import is_portfolio
from finflow_sb3.config_files import plain_yaml, resolve
from finflow_sb3.config_keys import SECTIONS
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import one_line
from finflow_sb3.zoo_values import call_text, dump_yaml

__all__ = ["ZooExport", "own_content", "own_yaml", "zoo_yaml"]

_CALLBACKS = "stable_baselines3.common.callbacks."
# What a pretrained run hands over: CQSAC would ask the zoo for it in vain.
_HAND_OVER: dict[str, Callable[[Any], bool]] = {
    "target_entropy": lambda value: value != "seeded",
    "cal_ql": lambda value: value is False,
    "offline_fraction": lambda value: value == 0.0,
}
# The environment that it needs is an object; the zoo evaluates by itself (--eval-freq).
_NOT_IN_YAML = "EvalCallback"


@dataclasses.dataclass(frozen=True)
class ZooExport:
    """YAML for the zoo, and what it cannot carry.

    Attributes
    ----------
    left_out : settings that reading the text back would not give, with their values
    """

    text: str
    left_out: dict[str, Any]


def own_content(settings: Settings, plain: PlainArguments | None = None) -> dict[str, Any]:
    """Every setting by section, ``env`` among them.

    Parameters
    ----------
    plain : arguments of a plain SB3 algorithm, which stand flat in the place of the sections
        of the two phases
    """
    content = settings.as_dict()
    if plain is None:
        return content
    foreign = [] if is_portfolio(settings.env) else ["env_kwargs"]
    unused = ["collect", *OFFLINE_ALGORITHMS, "cqsac", *foreign]
    kept = {name: values for name, values in content.items() if name not in unused}
    return {**kept, **plain.arguments, **plain.unused}


def own_yaml(
    settings: Settings,
    algo: str,
    plain: PlainArguments | None = None,
    origins: Mapping[str, str] | None = None,
) -> str:
    """`own_content` as YAML under the environment's id; `resolve` reads it back unchanged.

    Parameters
    ----------
    origins : where settings were written, by dotted name, put beside them as comments
    """
    if plain is None and not origins:
        return plain_yaml(settings)
    content = own_content(settings, plain)
    env = content.pop("env")
    head = dump_yaml({"algo": algo}) if plain is not None else ""
    if not origins:
        return head + dump_yaml({env: content})
    lines = _commented(dump_yaml({env: None}).replace(" null", ""), origins.get("env"))
    for section, values in content.items():
        if section in SECTIONS and isinstance(values, dict):
            lines += [f"  {section}:"]
            for name, value in values.items():
                item = indent(dump_yaml({name: value}), "    ")
                lines += _commented(item, origins.get(f"{section}.{name}"))
        else:
            lines += _commented(indent(dump_yaml({section: values}), "  "), origins.get(section))
    return head + "\n".join(lines) + "\n"


def _commented(item: str, origin: str | None) -> list[str]:
    """Lines of one YAML item, the first with its origin behind it."""
    first, *rest = item.rstrip("\n").split("\n")
    return [f"{first:<40}  # {one_line(origin)}" if origin is not None else first, *rest]


def zoo_yaml(settings: Settings, algo: str, plain: PlainArguments | None = None) -> ZooExport:
    """One environment id over flat arguments, as the zoo hands them to the constructor.

    Parameters
    ----------
    algo : "cqsac" or one of SB3's; the file is to be named after it
    plain : arguments, for SB3's

    Raises
    ------
    ConfigError
        If the zoo has no such algorithm.
    """
    if algo in OFFLINE_ALGORITHMS:
        raise ConfigError(
            f"--zoo: {algo} is no algorithm of Stable-Baselines3; export it without --zoo, or take "
            "--algo cqsac"
        )
    if plain is None:
        entry, left_out = _cqsac_entry(settings.cqsac)
    else:
        entry, left_out = {**plain.arguments, **plain.unused}, {}
    if is_portfolio(settings.env):
        entry["env_kwargs"] = settings.as_dict()["env_kwargs"]
    for name in ("policy_kwargs", "replay_buffer_kwargs", "normalize"):
        if isinstance(entry.get(name), dict):
            entry[name] = call_text(entry[name])
    text = f"# {algo} for rl-baselines3-zoo\n{dump_yaml({settings.env: entry})}"
    return ZooExport(text, _other_sections(settings) | left_out)


def _cqsac_entry(cqsac: CQSACSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of CQSAC's constructor, with the zoo's keys beside them; and what is neither."""
    entry: dict[str, Any] = dataclasses.asdict(cqsac)
    left_out: dict[str, Any] = {}
    if entry.pop("alpha_init") is not None:
        entry["ent_coef"] = f"auto_{cqsac.alpha_init}"
    for name, needless in _HAND_OVER.items():
        if not needless(entry[name]):
            left_out[f"cqsac.{name}"] = entry.pop(name)
    if cqsac.normalize is False:
        del entry["normalize"]
    written = [item for item in entry.pop("callback") if _NOT_IN_YAML not in item]
    if len(written) < len(cqsac.callback):
        left_out["cqsac.callback"] = _NOT_IN_YAML
    if written:
        entry["callback"] = [
            {f"{_CALLBACKS}{name}": arguments}
            for item in written
            for name, arguments in item.items()
        ]
    return entry, left_out


def _other_sections(settings: Settings) -> dict[str, Any]:
    """Settings of sections that the zoo does not have, where they are not the packaged ones."""
    usual = resolve(settings.env, algo=None, environ={}).as_dict()
    return {
        f"{section}.{name}": value
        for section, values in settings.as_dict().items()
        if section not in ("env", "env_kwargs", "cqsac")
        for name, value in values.items()
        if value != usual[section][name]
    }
