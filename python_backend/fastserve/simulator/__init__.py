"""A discrete-event simulator that drives the real scheduler, block pool and policies with a model of what steps cost."""
