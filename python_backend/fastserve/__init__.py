"""FastServe: iteration-level scheduling and a paged KV memory pool for ONNX models in Triton."""

__version__ = "0.1.0"
