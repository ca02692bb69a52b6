"""``fastserve bench``: one module for each benchmark, named in ``command.BENCHMARKS``."""
