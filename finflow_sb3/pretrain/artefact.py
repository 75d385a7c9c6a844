"""What pretraining hands to fine-tuning: a folder of tensors and JSON.

====================  ==========================================================
file                  content
====================  ==========================================================
`weights.safetensors`  `policy.*`, `critics.*`, `target_critics.*`, `value.*`,
                      under the names that CQSAC's modules give them
`artefact.json`       format, algorithm, network sizes, epoch, validation figures
`layout.json`         see `ObservationLayout`
`scaler.json`         see `Scaler`
====================  ==========================================================

Without a market there are no layout and scaler: `artefact.json` says `layout` null, and has the
environment's `spaces` (see `Spaces`).

The critics of the ensemble are stacked along a first dimension, as CQSAC's batched module
holds them: every parameter moves one to one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from finflow_sb3.envs.observations import Scaler
from finflow_sb3.errors import ArtefactError
from finflow_sb3.files import present, whole_folder, write_whole
from finflow_sb3.manifests import read_manifest, write_manifest
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.offline.spaces import Spaces
from finflow_sb3.runs.tensor_files import write_tensors

__all__ = [
    "Artefact",
    "read_artefact",
    "read_json",
    "read_tensors",
    "require_sealed",
    "stacked_weights",
    "write_artefact",
    "write_json",
    "write_sealed",
]

FORMAT = "finflow-artefact-1"
SEALED = "finflow-weights-1"
HEAD = "artefact.json"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Artefact:
    """Trained weights with all that is needed to use them.

    Attributes
    ----------
    algo : "iql"
    weights : name → tensor, names as in the module docstring
    layout, scaler : of the market's observations; None without a market
    facts : epoch, validation figures and the like, as JSON
    spaces : of the environment; None with a market
    """

    algo: str
    weights: dict[str, Tensor]
    sizes: NetworkSizes
    gate_scale: float
    layout: ObservationLayout | None
    scaler: Scaler | None
    facts: dict[str, Any]
    spaces: Spaces | None = None

    def of_market(self, what: str) -> tuple[ObservationLayout, Scaler]:
        """Layout and scaler.

        Raises
        ------
        ArtefactError
            If it was learned without a market.
        """
        if self.layout is None or self.scaler is None:
            raise ArtefactError(
                f"{what}: was pretrained without a market; in Python it seeds a CQSAC of its own "
                "environment"
            )
        return self.layout, self.scaler

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Weights whose names start with `prefix` and a dot, without it."""
        start = f"{prefix}."
        return {k[len(start) :]: v for k, v in self.weights.items() if k.startswith(start)}


def write_artefact(artefact: Artefact, folder: Path) -> None:
    """Write an artefact into a folder, which is replaced as a whole."""
    head = {
        "format": FORMAT,
        "algo": artefact.algo,
        "sizes": artefact.sizes.as_dict(),
        "gate_scale": artefact.gate_scale,
        "facts": artefact.facts,
    }
    if artefact.spaces is not None:
        head |= {"layout": None, "spaces": artefact.spaces.as_dict()}
    write_sealed(folder, artefact.weights, artefact.layout, artefact.scaler, {HEAD: head})


def write_sealed(
    folder: Path,
    weights: Mapping[str, Tensor],
    layout: ObservationLayout | None,
    scaler: Scaler | None,
    heads: Mapping[str, dict[str, Any]],
) -> None:
    """Weights, and layout and scaler if any, with a manifest, in a folder replaced as a whole.

    Parameters
    ----------
    heads : what the weights are, by the name of the JSON file that says so
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
    files = dict(heads)
    for name, part in (("layout.json", layout), ("scaler.json", scaler)):
        if part is not None:
            files[name] = part.as_dict()
    with whole_folder(folder) as new:
        write_tensors(new / WEIGHTS, tensors)
        for name, content in files.items():
            (new / name).write_bytes(_json(content))
        write_manifest(new, SEALED)


def require_sealed(folder: Path) -> None:
    """Compare the files of `write_sealed` with their manifest.

    Raises
    ------
    ArtefactError
        Naming the file that is missing, truncated or altered.
    """
    read_manifest(folder, SEALED, ArtefactError)


def read_artefact(folder: Path) -> Artefact:
    """Read an artefact. Nothing in it is executed.

    Raises
    ------
    ArtefactError
        If a file is missing or not whole; the message names it.
    """
    folder = present(folder)
    head = read_json(folder / HEAD)
    if head.get("format") != FORMAT:
        raise ArtefactError(f"{folder}: {HEAD} is of another format; pretrain again")
    require_sealed(folder)
    try:
        sizes = NetworkSizes(**head["sizes"])
        algo, scale, facts = str(head["algo"]), float(head["gate_scale"]), dict(head["facts"])
        spaces = Spaces.from_dict(head["spaces"]) if "spaces" in head else None
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{folder}: {HEAD} is not whole ({error})") from None
    layout = scaler = None
    if spaces is None:
        layout = ObservationLayout.from_dict(read_json(folder / "layout.json"))
        scaler = Scaler.from_dict(read_json(folder / "scaler.json"))
    return Artefact(
        algo=algo,
        weights=read_tensors(folder / WEIGHTS),
        sizes=sizes,
        gate_scale=scale,
        layout=layout,
        scaler=scaler,
        facts=facts,
        spaces=spaces,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `ArtefactError` naming the file if it is none."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtefactError(f"{path}: no such file; is this the folder of a run?") from None
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ArtefactError(f"{path}: holds no mapping")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, _json(content))


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; `ArtefactError` naming the file if it is not whole."""
    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise ArtefactError(f"{path}: no such file; is this the folder of a run?") from None
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}); use another checkpoint") from None


def stacked_weights(
    policy: nn.Module, q_funcs: nn.ModuleList, targets: nn.ModuleList, value: nn.Module
) -> dict[str, Tensor]:
    """d3rlpy's modules under the artefact's names."""
    out = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
    for prefix, ensemble in (("critics", q_funcs), ("target_critics", targets)):
        for name, tensor in _stacked(ensemble).items():
            out[f"{prefix}.{name}"] = tensor
    for name, tensor in value.state_dict().items():
        renamed = name.replace("_encoder.encoder.", "encoder.").replace("_fc.", "head.")
        out[f"value.{renamed}"] = tensor
    return {name: tensor.detach().clone() for name, tensor in out.items()}


def _stacked(ensemble: nn.ModuleList) -> dict[str, Tensor]:
    """Critics of one ensemble along a first dimension."""
    members = [module.state_dict() for module in ensemble]
    out = {}
    for name in members[0]:
        parts = [member[name] for member in members]
        if name.startswith("_encoder.encoder."):
            out[name.removeprefix("_encoder.")] = torch.cat(parts)
        elif name == "_fc.weight":
            out["head.weight"] = torch.stack([part.T for part in parts])
        elif name == "_fc.bias":
            out["head.bias"] = torch.stack(parts)[:, None]
    return out
