"""Policies outside of this package: one file that needs neither torch nor Stable-Baselines3."""
