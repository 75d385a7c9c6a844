"""Online phase: fine-tuning, callbacks and the monitor."""
