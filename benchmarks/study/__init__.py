"""The study: methods at equal training FLOPs on one stream, every seed shown. `python -m benchmarks.study --help`."""
