"""Where an iteration of the engine goes: ``fastserve bench step``."""
