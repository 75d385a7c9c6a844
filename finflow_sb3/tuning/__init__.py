"""Settings found by Optuna on the validation split."""
