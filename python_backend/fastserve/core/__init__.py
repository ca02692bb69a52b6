"""Decides: requests, scheduling, block ids, invariants. Stdlib only; no clock, no numpy, no I/O."""
