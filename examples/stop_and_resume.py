"""A run that is stopped half way and goes on comes to the same numbers, bit for bit.

python examples/stop_and_resume.py
"""

from __future__ import annotations

from made_up import SMALL, write_prices

import finflow_sb3 as ff


def main() -> None:
    settings = ff.resolve(algo="cqsac", files=[SMALL], params=[f"prices:{write_prices()}"])
    settings = settings.replace(cqsac={"offline_fraction": 0.0, "target_entropy": "auto"})

    whole = ff.finetune(settings)
    stopped = ff.finetune(settings, stop_at=800)
    print(f"stopped at step {stopped.steps} of {settings.cqsac.n_timesteps}")
    now = ff.take_snapshot(stopped.run)
    print(f"state {now.state}, validation Sharpe {now.validation['sharpe']:.4f}")

    resumed = ff.resume(stopped.run)
    print(f"whole {whole.validation['sharpe']:.12f}, resumed {resumed.validation['sharpe']:.12f}")
    assert resumed.validation == whole.validation
    first, second = (run.run / "metrics.jsonl" for run in (whole, resumed))
    assert first.read_bytes() == second.read_bytes()
    print("metrics.jsonl of both are equal, byte for byte")


if __name__ == "__main__":
    main()
