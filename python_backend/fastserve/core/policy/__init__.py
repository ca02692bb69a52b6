"""The order in which sequences are served; one module for each policy."""
