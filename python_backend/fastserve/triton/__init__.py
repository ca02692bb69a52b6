"""The edge: the only package that imports triton_python_backend_utils."""
