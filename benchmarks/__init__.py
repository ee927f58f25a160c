"""Each module prints a small table and writes JSON; run one by `python -m benchmarks.NAME`."""
