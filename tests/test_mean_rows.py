"""A policy's mean moves alone: what it leaves behind is σ, exactly."""

from __future__ import annotations

import pytest
import torch
from learning_fixtures import TINY, layout_of, random_states, shake

from finflow_sb3.nets.experts import FlatExperts, LayoutExperts, make_experts
from finflow_sb3.nets.mean_rows import load_mean, mean_state
from finflow_sb3.network_sizes import NetworkSizes

FORMS = {
    "anchors": {"base": "anchors"},
    "drift": {"base": "drift"},
    "full": {"base": "anchors", "mixture": "full"},
    "layer-norm": {"base": "anchors", "layer_norm": True},
    "flat": {"base": None},
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> dict[str, object]:
    return dict(FORMS[request.param])


def networks(form: dict[str, object]) -> tuple[list[LayoutExperts | FlatExperts], torch.Tensor]:
    """Two of one form with other weights, and states for them."""
    base = form.pop("base")
    sizes = NetworkSizes.from_kwargs({**TINY, **form})
    layout = None if base is None else layout_of(4, str(base))
    states = torch.randn(50, 12) if layout is None else random_states(layout, 50)
    action_size = 3 if layout is None else layout.action_size
    made = [make_experts(states.shape[1], action_size, layout, sizes) for _ in range(2)]
    for seed, network in enumerate(made):
        shake(network, seed=seed)
    return made, states


def rows(network: torch.nn.Module, layer: str, tensor: torch.Tensor) -> torch.Tensor:
    """A layer's weight or bias with its outputs first, as a view."""
    linear = isinstance(network.get_submodule(layer), torch.nn.Linear)
    return tensor if linear else tensor.movedim(-1, 0)


@torch.no_grad()
def test_the_mean_moves_and_sigma_keeps_its_rows(form: dict[str, object]) -> None:
    (source, target), states = networks(form)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    weights = mean_state(source)
    load_mean(target, weights)
    theirs, mine = source(states), target(states)
    torch.testing.assert_close(mine.mean, theirs.mean)
    torch.testing.assert_close(mine.gates, theirs.gates)
    heads = {f"{layer}.{kind}" for layer in target.heads for kind in ("weight", "bias")}
    for name, tensor in target.state_dict().items():
        if name not in heads:
            assert torch.equal(tensor, source.state_dict()[name]), name
    for layer, count in target.heads.items():
        for kind in ("weight", "bias"):
            name = f"{layer}.{kind}"
            now, given, first = (
                rows(target, layer, state[name])
                for state in (target.state_dict(), source.state_dict(), before)
            )
            assert torch.equal(now[:count], given[:count]), name
            assert torch.equal(now[count:], first[count:]), name


@torch.no_grad()
def test_sigma_does_not_come_along(form: dict[str, object]) -> None:
    """Whatever the source's log σ is: the target's does not depend on it."""
    (source, target), states = networks(form)
    load_mean(target, mean_state(source))
    first = target(states).log_std
    for layer, count in source.heads.items():
        for parameter in source.get_submodule(layer).parameters():
            rows(source, layer, parameter)[count:] += 1.0
    load_mean(target, mean_state(source))
    assert torch.equal(target(states).log_std, first)
    assert (source(states).log_std - first).abs().max() > 0.1


@pytest.mark.parametrize("fault", ["missing", "too much", "of another shape"])
def test_what_does_not_fit_is_refused(fault: str) -> None:
    (source, target), _ = networks({"base": "anchors"})
    weights = mean_state(source)
    if fault == "missing":
        del weights["score.weight"]
    elif fault == "too much":
        weights["value.bias"] = torch.zeros(1)
    else:
        weights["gate_head.weight"] = weights["gate_head.weight"][:-1]
    with pytest.raises(RuntimeError):
        load_mean(target, weights)
