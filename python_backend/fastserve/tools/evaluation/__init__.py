"""How well a model does on a dataset, and whether the served one does what its source does (``fastserve evaluate``)."""
