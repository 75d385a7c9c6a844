"""How long one decision takes: in torch, in ONNX Runtime, and from prices to orders.

    python benchmarks/latency.py logs/cqsac/finflow-US20-v0_1 --as-of 2022-12-28

The features of the last day are given; both sides take the same unscaled inputs of one portfolio
and give target weights: scaler, networks, action base and, of several runs, their mean. One thread
each, called in turn, so that what else the machine does meets both; medians and the 95th
percentile. Beside it `policy.act`, the network alone on a scaled observation. Then `allocate` as a
whole, from prices that are read to orders, and from a file.
"""

from __future__ import annotations

import argparse
import os
import time

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is loaded

from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from tempfile import TemporaryDirectory  # noqa: E402
from typing import Any  # noqa: E402

from finflow_sb3.quiet import silence_gym_notice  # noqa: E402

silence_gym_notice()

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402

from finflow_sb3.allocate import allocate  # noqa: E402
from finflow_sb3.allocation.decision import standing  # noqa: E402
from finflow_sb3.allocation.market import latest_market  # noqa: E402
from finflow_sb3.deployment.inputs import decision_inputs  # noqa: E402
from finflow_sb3.deployment.network import DecisionNetwork  # noqa: E402
from finflow_sb3.deployment.onnx_file import export_onnx  # noqa: E402
from finflow_sb3.ensembles import load_policies  # noqa: E402
from finflow_sb3.market.sources import load_prices, write_prices  # noqa: E402

CASH = 100_000
WARM_UP = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--prices", default="us20")
    parser.add_argument("--as-of", required=True)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--allocations", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, times in measure(given).items():
        middle, high = np.percentile(times, [50, 95]) * 1e3
        print(f"{name:<36} median {middle:9.3f} ms   95 % {high:9.3f} ms   of {len(times):,}")


def measure(given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each call, by what was called."""
    policies = load_policies(given.runs)
    own = policies.settings.market
    prices = load_prices(given.prices, max_gap=own.max_gap, partial=own.partial)
    market = latest_market(given.runs, prices, given.as_of)
    weights = np.append(np.zeros(market.layout.n_assets), 1.0)
    batch = standing(market, policies.settings.env_kwargs, weights, CASH, CASH)
    inputs = decision_inputs(batch)
    seen = batch.observations()
    network = DecisionNetwork(policies).eval()
    tensors = [torch.from_numpy(inputs[name]) for name in network.shapes]
    given_to_onnx = {name: inputs[name] for name in network.shapes}

    @torch.no_grad()
    def in_torch() -> Any:
        return network(*tensors)[0]

    with TemporaryDirectory() as folder:
        session = session_of(export_onnx(given.runs, Path(folder) / "policy.onnx").path)
        file = write_prices(prices, Path(folder) / "prices.parquet")

        def in_onnx() -> Any:
            return session.run(["target"], given_to_onnx)[0]

        apart = float(np.abs(in_onnx() - in_torch().numpy()).max())
        print(
            f"{len(policies.runs)} run(s), {market.layout.n_assets} assets, differ by {apart:.1e}"
        )
        act = policies.members[0].act
        times = in_turn(
            {
                "ONNX Runtime, inputs to weights": in_onnx,
                "torch, inputs to weights": in_torch,
                "policy.act, observation to action": lambda: act(seen),
            },
            given.calls,
        )
        allocating = {"cash": CASH, "as_of": given.as_of}
        whole = {
            "allocate, prices in memory": lambda: allocate(given.runs, prices, **allocating),
            "allocate, prices in a file": lambda: allocate(given.runs, file, **allocating),
        }
        return times | in_turn(whole, given.allocations, warm_up=1)


def session_of(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )


def in_turn(
    calls: dict[str, Callable[[], Any]], rounds: int, warm_up: int = WARM_UP
) -> dict[str, list[float]]:
    """Times of each of several calls, made one after the other in each round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(warm_up + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
