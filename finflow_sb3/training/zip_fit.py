"""From the content of a zip into a model that settings made: what does not fit is named."""

from __future__ import annotations

import inspect
import json
import math
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from finflow_sb3.config import EnvSettings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.envs.observations import ObservedMarket, Scaler
from finflow_sb3.errors import ArtefactError, CheckpointError
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.pretrain.artefact import Artefact
from finflow_sb3.training.sb3_zip import SCALER, ZipContent

__all__ = ["artefact_of", "fill", "require_fit"]

# Names of the zip's policy and of an artefact for the same networks.
PARTS = {
    "actor": "policy",
    "critic": "critics",
    "critic_target": "target_critics",
    "reference_value": "value",
}
REMEDY = "give the settings that it was trained with (-c RUN/config.yml, or -p policy_kwargs:{...})"

# What the settings decide whatever the zip had, and what is compared by itself.
SETTINGS_ALONE = {
    "dropout",
    "gate_scale",
    "layout",
    "optimizer_class",
    "optimizer_kwargs",
    "with_value",
}


def require_fit(
    content: ZipContent, model: CQSAC, market: ObservedMarket, env: EnvSettings
) -> None:
    """Compare what the zip says in words with the market, and with the model to be filled.

    Raises
    ------
    ArtefactError, CheckpointError
        Naming the first thing that differs.
    """
    path, stored = content.path, content.policy_kwargs
    if isinstance(stored.get("layout"), dict):
        layout = ObservationLayout.from_dict(stored["layout"])
        market.layout.require_equal(layout, str(path))
    scale = stored.get("gate_scale", env.gate_scale)
    if scale != env.gate_scale:
        raise CheckpointError(
            f"{path}: was trained with gate_scale {scale}, the settings have {env.gate_scale}; "
            f"give -p gate_scale:{scale}"
        )
    _require_networks(content, model)
    if content.plain.get(SCALER) is not None:
        _require_scaler(content, market.scaler)


def _require_networks(content: ZipContent, model: CQSAC) -> None:
    """Arguments of the policy, defaults included: not all of them show in the tensors' shapes."""
    defaults = _defaults(model.policy_class)
    mine = defaults | {k: _plain(v) for k, v in (model.policy_kwargs or {}).items()}
    theirs = defaults | content.policy_kwargs
    for name in sorted(set(defaults) - SETTINGS_ALONE):
        pair = theirs[name], mine[name]
        # Without it the policy has widths of its own, which the shapes tell of.
        if pair[0] != pair[1] and not (name == "net_arch" and None in pair):
            raise CheckpointError(
                f"{content.path}: has {name} {pair[0]!r}, these settings {pair[1]!r}; {REMEDY}"
            )


def _defaults(policy_class: type[Any]) -> dict[str, Any]:
    """Arguments of a policy that have defaults, as JSON, those of its parents among them."""
    out = {}
    for owner in reversed(policy_class.__mro__):
        own = vars(owner).get("__init__")
        if inspect.isfunction(own):  # `object` has a slot
            for item in inspect.signature(own).parameters.values():
                if item.default is not item.empty:
                    out[item.name] = _plain(item.default)
    return out


def _plain(value: Any) -> Any:
    """The value as SB3 writes it into a zip's JSON."""
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return str(value)


def _require_scaler(content: ZipContent, scaler: Scaler) -> None:
    stored = content.plain[SCALER]
    if not isinstance(stored, dict):
        raise CheckpointError(f"{content.path}: {SCALER} in its data is no scaler")
    try:
        theirs = Scaler.from_dict(stored)
    except ArtefactError:
        raise CheckpointError(f"{content.path}: {SCALER} in its data is not whole") from None
    for mine, other in ((scaler.means, theirs.means), (scaler.deviations, theirs.deviations)):
        for name, values in mine.items():
            pairs = zip(values, other.get(name, ()), strict=False)
            same = len(values) == len(other.get(name, ())) and all(
                math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) for a, b in pairs
            )
            if not same:
                raise CheckpointError(
                    f"{content.path}: {name} was scaled otherwise; give the prices, train_end and "
                    "validation_end that it was trained with"
                )


def artefact_of(
    content: ZipContent, market: ObservedMarket, sizes: NetworkSizes, gate_scale: float
) -> Artefact:
    """The networks of a zip whose run was seeded, as what such a run starts from."""
    weights = {}
    for name, tensor in content.policy.items():
        part, _, rest = name.partition(".")
        if part in PARTS:
            weights[f"{PARTS[part]}.{rest}"] = tensor
    facts = {"imported": content.path.name}
    return Artefact("cqsac", weights, sizes, gate_scale, market.layout, market.scaler, facts)


def fill(model: CQSAC, content: ZipContent) -> None:
    """Networks, moments of the optimisers, coefficients and counters of the zip into `model`.

    Raises
    ------
    CheckpointError
        Naming what is missing, too much or of another shape.
    """
    path = content.path
    counters = content.counters()
    names, variables = model._get_torch_save_params()
    _require_names(content, set(names), set(content.states), "part")
    _require_names(content, set(variables), set(content.variables), "coefficient")
    _require_shapes(content, model.policy, content.policy)
    for name in names:
        if name != "policy":
            _fill_optimizer(_found(model, name), content.states[name], f"{path}: {name}.pth")
    model.policy.load_state_dict(content.policy, strict=True)
    for name in variables:
        target: Tensor = _found(model, name)
        if target.shape != content.variables[name].shape:
            raise CheckpointError(f"{path}: {name} has the shape of something else")
        target.data.copy_(content.variables[name])
    entropy = content.plain.get("target_entropy")
    if isinstance(entropy, (int, float)) and math.isfinite(entropy):
        model.target_entropy = float(entropy)
    for name, count in counters.items():
        setattr(model, name, count)


def _found(model: CQSAC, dotted: str) -> Any:
    found: Any = model
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


def _require_names(content: ZipContent, mine: set[str], theirs: set[str], what: str) -> None:
    for names, words in ((mine - theirs, "lacks"), (theirs - mine, "has")):
        if names:
            raise CheckpointError(
                f"{content.path}: {words} the {what} {min(names)}, other than these settings ask "
                "for; give those that it was trained with (ent_coef, cql_target_action_gap)"
            )


def _require_shapes(content: ZipContent, policy: nn.Module, theirs: dict[str, Tensor]) -> None:
    mine = policy.state_dict()
    for name in [*mine, *theirs]:
        if name not in theirs or name not in mine:
            words = "lacks" if name in mine else "has"
            raise CheckpointError(
                f"{content.path}: its policy {words} {name}, other than these settings ask for; "
                f"{REMEDY}"
            )
        shapes = tuple(theirs[name].shape), tuple(mine[name].shape)
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{content.path}: {name} is {shapes[0]}, these settings make {shapes[1]}; {REMEDY}"
            )


def _fill_optimizer(optimizer: Optimizer, packed: dict[str, Any], where: str) -> None:
    """Moments alone; rates and betas are the settings'."""
    mine = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = packed.get("state")
    if not isinstance(state, dict):
        raise CheckpointError(f"{where} has no state")
    for index, moments in state.items():
        known = isinstance(index, int) and 0 <= index < len(parameters)
        if not known or not isinstance(moments, dict):
            raise CheckpointError(f"{where} has moments of a parameter {index!r} that is not there")
        for name, value in moments.items():
            whole = isinstance(value, Tensor) and (
                value.numel() == 1 if name == "step" else value.shape == parameters[index].shape
            )
            if not whole:
                raise CheckpointError(f"{where}: {name} of parameter {index} does not fit")
    optimizer.load_state_dict({"state": state, "param_groups": mine["param_groups"]})
