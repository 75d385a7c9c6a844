"""What `allocate` is made of: the latest prices, the holdings, a decision, orders in shares."""
