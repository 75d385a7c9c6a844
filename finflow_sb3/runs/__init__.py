"""Run folders, checkpoints and metric logs."""
