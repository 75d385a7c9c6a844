"""Behaviours that trade, and the datasets of what they did."""
