"""Minari datasets with Box spaces: of the local store or any folder, read and written.

Spaces are taken from the metadata's text. Minari itself builds the environment where they are
missing: such a dataset is refused. The `env_spec` that metadata may have is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finflow_sb3.errors import ArtefactError, ConfigError, MissingExtraError
from finflow_sb3.files import whole_folder
from finflow_sb3.offline.plain import PlainDataset, PlainEpisode, joined, reading
from finflow_sb3.offline.spaces import Spaces

if TYPE_CHECKING:
    from minari.dataset.minari_storage import MinariStorage

__all__ = ["PREFIX", "is_minari", "read_minari", "stored_at", "write_minari"]

PREFIX = "minari:"
METADATA = "metadata.json"
DATA = "data"


def is_minari(source: str) -> bool:
    """Whether it names a Minari dataset: `minari:ID`, or a folder that holds one."""
    return source.startswith(PREFIX) or _data_folder(Path(source)) is not None


def stored_at(source: str) -> Path:
    """The folder of `minari:ID` in Minari's local store ($MINARI_DATASETS_PATH, or ~/.minari).

    Raises
    ------
    MissingExtraError
        If minari is not installed.
    ConfigError
        If it is no identifier of a dataset.
    """
    require_minari(source)
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    identifier = source.removeprefix(PREFIX)
    try:
        parse_dataset_id(identifier)
    except (ValueError, TypeError):
        raise ConfigError(
            f"{source}: is no Minari dataset; name it as in minari:D4RL/pen/human-v2"
        ) from None
    return Path(get_dataset_path(identifier))


def require_minari(source: str) -> None:
    """Raise a `MissingExtraError` unless minari is installed."""
    if find_spec("minari") is None:
        raise MissingExtraError(f'{source}: needs minari; run: pip install "finflow-sb3[minari]"')


def _data_folder(folder: Path) -> Path | None:
    """Where the metadata lie: in a folder, or in its `data`, as in Minari's store."""
    found = (path for path in (folder / DATA, folder) if (path / METADATA).is_file())
    return next(found, None)


# ------------------------------------------------------------------ reading


def read_minari(source: str) -> PlainDataset:
    """Read a Minari dataset. Nothing in it is executed, and nothing is downloaded.

    Parameters
    ----------
    source : `minari:ID` of the local store, or a folder

    Raises
    ------
    MissingExtraError
        If minari is not installed.
    ArtefactError
        If there is none, it is not whole, or its spaces are no boxes.
    """
    require_minari(source)
    folder = stored_at(source) if source.startswith(PREFIX) else Path(source)
    data = _data_folder(folder)
    if data is None:
        identifier = source.removeprefix(PREFIX)
        raise ArtefactError(
            f"{source}: there is no such dataset in {folder.parent}; get it with minari download "
            f"{identifier}"
        )
    with reading(source):
        spaces = _spaces(source, json.loads((data / METADATA).read_text()))
        from minari.dataset.minari_storage import MinariStorage

        storage = MinariStorage.read(data)
        return joined(source, spaces, _episodes(storage))


def _spaces(source: str, metadata: dict[str, Any]) -> Spaces:
    """Shapes and bounds from the metadata's text."""
    observation, action = (
        json.loads(metadata[name]) for name in ("observation_space", "action_space")
    )
    for name, space in (("observation", observation), ("action", action)):
        if space["type"] != "Box":
            raise ArtefactError(
                f"{source}: its {name} space is a {space['type']}; the offline phase needs a Box"
            )
    shape = tuple(observation["shape"])
    if len(shape) > 2 and observation["dtype"] == "uint8":
        raise ArtefactError(f"{source}: its observations are images; the networks take flat ones")
    low, high = (tuple(np.ravel(action[name]).astype(float).tolist()) for name in ("low", "high"))
    return Spaces(shape or (1,), tuple(action["shape"]) or (1,), low, high)


def _episodes(storage: MinariStorage) -> Iterator[PlainEpisode]:
    for number, episode in enumerate(storage.get_episodes(range(storage.total_episodes))):
        terminations = np.ravel(episode["terminations"]).astype(bool)
        if terminations[:-1].any():
            raise ValueError(f"episode {number} goes on after its end")
        terminal = bool(terminations[-1:].any())
        observations, actions = (np.asarray(episode[name]) for name in ("observations", "actions"))
        yield PlainEpisode(observations, actions, np.asarray(episode["rewards"]), terminal)


# ------------------------------------------------------------------ writing


def write_minari(
    episodes: Iterable[PlainEpisode], spaces: Spaces, folder: Path, metadata: dict[str, Any]
) -> None:
    """Write episodes through Minari, one in memory at a time; whole or not at all.

    Parameters
    ----------
    folder : of the dataset, as Minari's store has it
    metadata : its identifier (`dataset_id`) and what else is to be said of it

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    require_minari(str(folder))
    import minari
    from gymnasium.spaces import Box
    from minari.dataset.minari_storage import MinariStorage

    folder = folder.absolute()  # Minari measures a dataset at a path relative to itself
    low, high = (np.array(bound, dtype=np.float32) for bound in (spaces.low, spaces.high))
    with _or_nothing(folder), whole_folder(folder / DATA) as new:
        storage = MinariStorage.new(
            new,
            observation_space=Box(-np.inf, np.inf, spaces.observation_shape, np.float32),
            action_space=Box(low, high, spaces.action_shape, np.float32),
        )
        storage.update_metadata({"minari_version": minari.__version__, **metadata})
        storage.update_episodes(map(_buffer, episodes))


@contextmanager
def _or_nothing(folder: Path) -> Iterator[None]:
    """Leave no empty folder, which Minari would take for a dataset, where writing fails."""
    try:
        yield
    except BaseException:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _buffer(episode: PlainEpisode) -> Any:
    from minari.data_collector import EpisodeBuffer

    steps = len(episode.rewards)
    last = np.arange(steps) == steps - 1
    return EpisodeBuffer(
        observations=episode.observations,
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=last & episode.terminal,
        truncations=last & (not episode.terminal),
    )
