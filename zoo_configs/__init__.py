"""RL-Zoo style settings, one file an algorithm."""
