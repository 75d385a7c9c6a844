"""Prices, causal features, anchors, observation layout and splits."""
