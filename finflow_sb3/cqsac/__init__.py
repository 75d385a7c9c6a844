"""CQSAC, a conservative quantile SAC with experts, as an SB3 algorithm."""
