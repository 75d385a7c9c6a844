"""Backtests, measures, pictures and the report."""
