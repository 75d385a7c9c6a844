"""Upstream's tests that CQSAC is not held to, each with the reason; each must fail."""

from __future__ import annotations

SCALAR = "takes the critic's value for one number; TQC's quantiles fail there too"

LEFT_OUT: dict[str, dict[str, str]] = {
    "stable_baselines3": {
        "test_gae.py::test_infinite_horizon[False-CQSAC]": SCALAR,
        "test_gae.py::test_infinite_horizon[True-CQSAC]": SCALAR,
        "test_n_step_replay.py::test_n_steps_with_dict_obs[None]": (
            "wants an AssertionError; CQSAC raises a ConfigError that says the same"
        ),
        "test_tensorboard.py::test_tensorboard[sac]": (
            "wants runs to be called SAC_1; CQSAC's are CQSAC_1, as TQC's are TQC_1"
        ),
    },
    "sb3_contrib": {},
}
