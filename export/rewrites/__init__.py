"""Rewrites of packed graphs that make them faster and change their results by no more than rounding; for all kinds of models."""
