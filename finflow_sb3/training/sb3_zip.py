"""CQSAC in Stable-Baselines3's zip: written by SB3 itself, read without running what is in it.

SB3 keeps in `data` a JSON with pickles among its values, and beside it tensors in torch's own
format. Here the tensors are read by `torch.load(weights_only=True)`, of `data` its plain JSON
values alone; a pickle is never opened.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import CheckpointError
from finflow_sb3.files import write_whole

__all__ = ["ZipContent", "read_zip", "write_zip"]

SCALER = "market_scaler"
"""Attribute, and so key of `data`, with the scaler that observations are made with."""
DATA, VARIABLES, ENDING = "data", "pytorch_variables.pth", ".pth"
# Only a CQSAC has these arguments.
OWN = ("cql_alpha", "utd_ratio", "risk_measure")
COUNTERS = ("num_timesteps", "_n_updates", "_episode_num")


@dataclass(frozen=True)
class ZipContent:
    """What was read of a zip.

    Attributes
    ----------
    states : `policy`, `actor.optimizer`, ... → what its `state_dict` gave
    variables : tensors beside them: the entropy coefficient, the penalty's multiplier
    plain : values of `data` that are JSON; of one with a pickle in it, what stands beside that
    """

    path: Path
    states: dict[str, dict[str, Any]]
    variables: dict[str, Tensor]
    plain: dict[str, Any]

    @property
    def policy(self) -> dict[str, Tensor]:
        return self.states["policy"]

    @property
    def policy_kwargs(self) -> dict[str, Any]:
        found = self.plain.get("policy_kwargs")
        return found if isinstance(found, dict) else {}

    def counters(self) -> dict[str, int]:
        """Steps, updates and episodes so far.

        Raises
        ------
        CheckpointError
            If one is missing, or no count.
        """
        out = {}
        for name in COUNTERS:
            value = self.plain.get(name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise CheckpointError(f"{self.path}: {name} in its data is {value!r}, no count")
            out[name] = value
        return out


def write_zip(model: CQSAC, market: ObservedMarket, path: Path) -> None:
    """`model.save`, with what only finflow can give left out: market rows and offline data.

    A model that is loaded from it has SB3's kind of replay buffer, whose observations are its
    environment's, whatever that is. The model can't be used for training any more.
    """
    model.replay_buffer_class, model.replay_buffer_kwargs = None, {}
    model.offline_fraction = 0.0
    model._last_obs = None  # of an environment that nobody will find again
    setattr(model, SCALER, market.scaler.as_dict())
    stream = io.BytesIO()
    model.save(stream)
    write_whole(path, stream.getvalue())


def read_zip(path: Path) -> ZipContent:
    """Tensors and plain values of a zip that SB3 wrote of a CQSAC. Executes nothing.

    Raises
    ------
    CheckpointError
        If it is no such zip, not whole, or holds anything but tensors and numbers where those
        belong; the message names what.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a zip that CQSAC.save wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            # The end of a file that was cut off may be the end of one of the archives within it.
            if not archive.infolist() or archive.infolist()[0].header_offset != 0:
                raise zipfile.BadZipFile("it does not begin where the file does")
            members = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise CheckpointError(
            f"{path}: no zip, or not whole ({error}); copy it again from where it was written"
        ) from None
    plain = _plain(path, members)
    states = {
        name.removesuffix(ENDING): _tensors(path, name, content)
        for name, content in members.items()
        if name.endswith(ENDING) and name != VARIABLES
    }
    if "policy" not in states:
        raise CheckpointError(f"{path}: holds no policy.pth; give a zip that CQSAC.save wrote")
    variables = _tensors(path, VARIABLES, members[VARIABLES]) if VARIABLES in members else {}
    for name, named in (("policy.pth", states["policy"]), (VARIABLES, variables)):
        for key, value in named.items():
            if not isinstance(value, Tensor):
                raise CheckpointError(f"{path}: {name} has a {type(value).__name__} for {key}")
    return ZipContent(path, states, variables, plain)


def _plain(path: Path, members: dict[str, bytes]) -> dict[str, Any]:
    try:
        content = json.loads(members[DATA])
    except KeyError:
        raise CheckpointError(f"{path}: holds no data; give a zip that CQSAC.save wrote") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its data is no JSON ({error})") from None
    if not isinstance(content, dict) or not all(name in content for name in OWN):
        raise CheckpointError(
            f"{path}: is no CQSAC (its data has no {OWN[0]}); other algorithms have other networks"
        )
    return content


def _tensors(path: Path, name: str, content: bytes) -> dict[str, Any]:
    """A dictionary of torch's own format; with `weights_only` nothing in it can be run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that are refused in one line below
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: {name} holds more than tensors and numbers, which could run code; it was not "
            "read"
        ) from None
    except (RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path}: {name} can't be read ({reason})") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise CheckpointError(f"{path}: {name} holds no named tensors")
    return found
