"""Checking a file as a whole: every key, type, range and contradiction, of all its entries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finflow_sb3.config_arguments import plain_arguments
from finflow_sb3.config_checks import notes
from finflow_sb3.config_documents import read_document
from finflow_sb3.config_files import DEFAULT_ENV, config_path, resolve
from finflow_sb3.config_keys import PLAIN_ALGORITHMS

__all__ = ["Validated", "validate"]


@dataclass(frozen=True)
class Validated:
    """A configuration without a fault.

    Attributes
    ----------
    environments : those that it has entries for, or the default one
    notes : what is valid and may surprise, a sentence each
    """

    path: Path
    environments: tuple[str, ...]
    notes: tuple[str, ...]


def validate(path: str | Path, algo: str | None = None) -> Validated:
    """Check a file, or the config.yml of a run's folder.

    Parameters
    ----------
    algo : owner of bare keys that several sections have, where the file does not say

    Raises
    ------
    ConfigError
        For the first fault, with the place where it was written.
    """
    file = config_path(Path(path))
    document = read_document(file)
    algo = document.algo or algo
    environments = tuple(document.environments()) or (DEFAULT_ENV,)
    found: dict[str, None] = {}
    for env in environments:
        settings = resolve(env, algo=algo, files=[file], environ={})
        if algo in PLAIN_ALGORITHMS:
            unused = plain_arguments(algo, env, files=[file], environ={}).unused
            if unused:
                found[f"{env}: nothing here acts on {', '.join(unused)}"] = None
        else:
            found |= dict.fromkeys(f"{env}: {note}" for note in notes(settings))
    return Validated(file, environments, tuple(found))
