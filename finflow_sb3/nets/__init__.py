"""Networks, distributions and losses of both phases."""
