"""CQSAC beside SB3's PPO and beside rules, all in the same market and at the same costs.

python examples/compare.py
"""

from __future__ import annotations

from made_up import SMALL, write_prices

import finflow_sb3 as ff

COLUMNS = {"annual_return": "return", "sharpe": "Sharpe", "max_drawdown": "drawdown"}


def main() -> None:
    file = str(write_prices())
    settings = ff.resolve(algo="cqsac", files=[SMALL], params=[f"prices:{file}"])
    cqsac = ff.finetune(settings, ff.pretrain(settings).run)
    ppo = ff.train_plain(settings, "ppo", {"n_timesteps": 2016, "n_steps": 63})

    figures = ff.backtest_baselines(settings).measures
    for trained in (cqsac, ppo):
        evaluated = ff.evaluate(trained.run)
        figures[evaluated.policy] = evaluated.measures[evaluated.policy]

    print(f"{'test split, lag 1':<24}" + "".join(f"{name:>10}" for name in COLUMNS.values()))
    for name, at in sorted(figures.items(), key=lambda item: -item[1]["lag_1"]["sharpe"]):
        cells = (f"{at['lag_1'][key]:>10.2f}" for key in COLUMNS)
        print(f"{name:<24}" + "".join(cells))


if __name__ == "__main__":
    main()
