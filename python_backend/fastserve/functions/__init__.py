"""Functions of the user's that are served: they run in the user's process, Triton's stub asks over a local socket."""
