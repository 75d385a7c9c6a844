"""The market environment, batched in NumPy, with gymnasium and SB3 fronts."""
