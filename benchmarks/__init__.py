"""What measures Treadle, from a clone: `python -m benchmarks`. Results are kept in `results/`."""
