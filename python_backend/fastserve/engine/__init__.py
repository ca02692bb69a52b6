"""Joins core and worker: the transactional step, the engine thread, statistics."""
