"""A matrix of algorithms, markets and seeds, on one machine or on many."""
