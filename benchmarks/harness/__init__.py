"""What the benchmark programs share: timing, memory, records, reports; each file one thing."""
