"""The verb `export_onnx`: policies as an ONNX file that says what it is."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finflow_sb3._version import installed_version
from finflow_sb3.deployment.network import DecisionNetwork
from finflow_sb3.ensembles import Policies, Runs, load_policies
from finflow_sb3.envs.batch import default_trade_rate
from finflow_sb3.errors import ArtefactError, ConfigError, MissingExtraError
from finflow_sb3.evaluation.ensemble import Combination
from finflow_sb3.files import whole_file

__all__ = ["ExportedPolicy", "export_onnx"]

OPSET = 18
FORMAT = "finflow-onnx-1"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
# In float32, sums in another order differ in the seventh digit; beyond this it is another policy.
TOLERANCE = 1e-5
TRIED = 64


@dataclass(frozen=True)
class ExportedPolicy:
    """An ONNX file, and what it takes and gives.

    Attributes
    ----------
    runs : that are in it
    inputs : shape by name, behind the batch
    outputs : names
    largest_difference : between its target weights and torch's on made-up states
    """

    path: Path
    runs: tuple[Path, ...]
    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    opset: int
    largest_difference: float


def export_onnx(
    run: Runs,
    output: str | Path,
    combination: Combination | None = None,
    shrinkage: float | None = None,
) -> ExportedPolicy:
    """Write the best policy of a run, or several as one, with the scaler, as ONNX.

    The file is tried in ONNX Runtime before it takes its name.

    Parameters
    ----------
    run : a run, an ensemble's folder, or several runs
    output : file that ends in .onnx; one that is there is replaced
    combination, shrinkage : of several runs, as for `load_policies`

    Raises
    ------
    MissingExtraError
        If onnx, onnxscript or onnxruntime is missing.
    ArtefactError
        If the run has no policy, or its networks cannot be written as ONNX.
    """
    path = Path(output)
    if path.suffix != ".onnx":
        raise ConfigError(f"{path}: a file for ONNX Runtime ends in .onnx")
    _require_extra()
    policies = load_policies(run, combination, shrinkage)
    network = DecisionNetwork(policies).eval()
    with whole_file(path) as new:
        _write(network, policies, new)
        apart = _difference(network, new)
        if not apart <= TOLERANCE:
            raise ArtefactError(
                f"{policies.runs[0]}: as ONNX its weights differ by {apart:.1e}, over "
                f"{TOLERANCE:.0e}; nothing was written: use the run itself"
            )
    return ExportedPolicy(path, policies.runs, network.shapes, network.outputs, OPSET, apart)


def _require_extra() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f'export to ONNX needs {", ".join(missing)}; pip install "finflow-sb3[onnx]"'
        )


def _write(network: DecisionNetwork, policies: Policies, path: Path) -> None:
    import onnx

    batch = torch.export.Dim("batch")
    example = tuple(torch.from_numpy(x) for x in _made_up(network, 3).values())
    try:
        with _silence(), _unchecked():
            program = torch.onnx.export(
                network,
                example,
                dynamo=True,
                verbose=False,
                input_names=list(network.shapes),
                output_names=list(network.outputs),
                dynamic_shapes=(tuple({0: batch} for _ in example),),
                opset_version=OPSET,
            )
    except (torch.onnx.OnnxExporterError, torch._dynamo.exc.UserError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ArtefactError(f"{policies.runs[0]}: cannot be written as ONNX ({reason})") from None
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, _facts(network, policies))
    for node in model.graph.node:
        # Where in which file of this machine it was written.
        del node.metadata_props[:]
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _facts(network: DecisionNetwork, policies: Policies) -> dict[str, str]:
    """What a program has to know to use it; of runs their names, which tell nothing of machines."""
    env = policies.settings.env_kwargs
    facts: dict[str, Any] = {
        "format": FORMAT,
        "version": installed_version(),
        "layout": policies.layout.as_dict(),
        "scaler": policies.scaler.as_dict(),
        "assets": policies.layout.assets,
        "action_base": env.action_base,
        "trade_rate": default_trade_rate(env),
        "runs": [f"{run.parent.name}/{run.name}" for run in policies.runs],
        "combination": policies.combination,
        "shrinkage": policies.shrinkage,
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}


def _made_up(network: DecisionNetwork, count: int) -> dict[str, NDArray[np.float32]]:
    """Inputs that could be: features around the scaler's means, weights on the simplex."""
    rng = np.random.default_rng(0)
    out = {}
    for name, shape in network.shapes.items():
        if name in network.scaled:
            mean, deviation = (
                getattr(network, f"{part}_{name}").numpy() for part in ("mean", "deviation")
            )
            drawn = mean + deviation * rng.normal(size=(count, *shape))
        elif name in ("weights", "pending", "anchor_weights"):
            drawn = rng.dirichlet(np.ones(shape[-1]), size=(count, *shape[:-1]))
        elif name in ("tradable", "present"):
            drawn = rng.random((count, *shape)) < 0.8
        else:
            drawn = rng.uniform(0.0, 0.3, size=(count, *shape))
        out[name] = np.asarray(drawn, dtype=np.float32)
    return out


def _difference(network: DecisionNetwork, path: Path) -> float:
    """Largest difference between outputs of ONNX Runtime and of torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    inputs = _made_up(network, TRIED)
    with torch.no_grad():
        expected = network(*(torch.from_numpy(x) for x in inputs.values()))
    found = session.run(None, inputs)
    return max(
        float(np.abs(mine - theirs.numpy()).max())
        for mine, theirs in zip(found, expected, strict=True)
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Without the exporter's remarks on its own progress, and on packages that we do not need."""
    chatty = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _unchecked() -> Iterator[None]:
    """Without distributions checking their arguments, which depends on values and has no graph."""
    distribution = torch.distributions.Distribution
    before: bool = distribution._validate_args
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        distribution.set_default_validate_args(before)
