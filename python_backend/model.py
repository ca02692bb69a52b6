"""What Triton imports: <backend-directory>/fastserve/model.py. The package ``fastserve`` lies beside it or is installed."""

from fastserve.triton.backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
