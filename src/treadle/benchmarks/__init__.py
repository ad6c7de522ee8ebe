"""What measures speed; results with their machine are kept in `benchmarks/results/`."""
