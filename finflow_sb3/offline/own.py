"""What a user brings to a collection beside its settings: rules, and records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import BEHAVIOURS, CollectSettings, EnvSettings
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.offline.own_rules import OwnRule
from finflow_sb3.offline.record import Record, Replay, record_episodes

__all__ = [
    "NOTHING",
    "Own",
    "flags_of",
    "names_of",
    "noted",
    "require_names",
    "require_same",
]


@dataclass(frozen=True)
class Own:
    """Behaviours of the user's own.

    Attributes
    ----------
    rules : take turns with those of the settings
    replays : records; their episodes come after the others
    alone : without the rules of the settings; episodes are of `rules` then, and there are none
        but the records' where there are no `rules`

    Raises
    ------
    ConfigError
        If two behaviours have one name, or nothing is left that would trade.
    """

    rules: tuple[OwnRule, ...] = ()
    replays: tuple[Replay, ...] = ()
    alone: bool = False

    def __post_init__(self) -> None:
        require_names(self.names, self.alone)

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which a dataset has them, behind `BEHAVIOURS`."""
        return names_of(self.rules, [each.record for each in self.replays])

    def rule_of_episodes(self, collect: CollectSettings) -> NDArray[np.int32]:
        """Rule of every episode but the records', as an index into `BEHAVIOURS` and `names`.

        Raises
        ------
        ConfigError
            If there are too few episodes for all rules of the user's own to have one.
        """
        known = [] if self.alone else [BEHAVIOURS.index(name) for name in collect.behaviours]
        order = [*known, *range(len(BEHAVIOURS), len(BEHAVIOURS) + len(self.rules))]
        if self.rules and collect.episodes < len(order):
            raise ConfigError(
                f"collect.episodes: {collect.episodes} are too few for {self.rules[-1].name} to "
                f"have one: {len(order)} rules take turns; collect as many at least"
            )
        return np.resize(np.array(order, dtype=np.int32), collect.episodes if order else 0)

    def behaviour_of_episodes(
        self, collect: CollectSettings, env: EnvSettings
    ) -> NDArray[np.int32]:
        """The same of all episodes, shape [E]."""
        first = len(BEHAVIOURS) + len(self.rules)
        places = np.arange(first, first + len(self.replays), dtype=np.int32)
        counts = [record_episodes(env, each) for each in self.replays]
        return np.concatenate([self.rule_of_episodes(collect), np.repeat(places, counts)])

    def as_dict(self) -> dict[str, Any]:
        """Names with hashes of what stands behind them, for notes and keys; empty for nothing."""
        if not self.names:
            return {}
        records = [each.record for each in self.replays]
        return noted(self.rules, records, self.alone)

    def require_known(self) -> None:
        """Refuse rules that the cache could not tell from others of their name.

        Raises
        ------
        ConfigError
            Naming the first.
        """
        for rule in self.rules:
            if rule.source is None:
                raise ConfigError(
                    f"{rule.name}: is no plain function of a module's file as it stands now, so "
                    "that the cache can't tell it from another; collect to a file (save_path), "
                    "and give that as the dataset"
                )


def names_of(rules: Sequence[OwnRule], records: Sequence[Record]) -> tuple[str, ...]:
    """By which datasets call them, in their order."""
    return (*(rule.name for rule in rules), *(record.name for record in records))


def require_names(names: Sequence[str], alone: bool) -> None:
    """What `Own` asks of names; for those who have no market yet, as fitting one takes long.

    Raises
    ------
    ConfigError
        As `Own` does.
    """
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ConfigError(f"{twice[0]}: two behaviours are called so; rename one of the two")
    if alone and not names:
        raise ConfigError(
            "only_own leaves no behaviour at all; give rules of your own (--behaviour) or "
            "records (--record) with it"
        )


NOTHING = Own()


FLAGS = {"behaviours": "--behaviour", "records": "--record"}


def noted(rules: Sequence[OwnRule], records: Sequence[Record], alone: bool) -> dict[str, Any]:
    """As `Own.as_dict`, before a market is there."""
    return {  # lists, as their order counts
        "behaviours": [[rule.name, rule.source] for rule in rules],
        "records": [[each.path, each.key] for each in records],
        "only_own": alone,
    }


def flags_of(note: dict[str, Any]) -> list[str]:
    """The flags that a note stands for, as in ``["--behaviour my_rules:trend"]``."""
    return [f"{flag} {name}" for kind, flag in FLAGS.items() for name, _ in note.get(kind, [])]


def require_same(note: dict[str, Any], given: dict[str, Any], what: str) -> None:
    """Refuse to go on with other rules and records than it began with.

    Parameters
    ----------
    note, given : as `noted` gives them; the note is compared, and nothing in it is imported
    what : that goes on

    Raises
    ------
    ArtefactError
        Naming what has to be given, or what has changed, or can't be compared.
    """
    before = flags_of(note)
    if before != flags_of(given):
        with_what = " ".join(before) or "the settings' rules alone"
        again = "give the same again" if before else "leave out --behaviour and --record"
        raise ArtefactError(f"{what}: was begun with {with_what}; {again}")
    for kind in FLAGS:
        for (name, key), (_, now) in zip(note.get(kind, []), given.get(kind, []), strict=True):
            if key is None or now is None:
                raise ArtefactError(
                    f"{what}: {name} is no plain function of a module's file as it stands now, so "
                    "that it can't be compared with the one that it began with; begin again"
                )
            if key != now:
                raise ArtefactError(
                    f"{what}: {name} has changed since it was begun; take the change back, or "
                    "begin again"
                )
