"""Computes: packing, KV bytes, the ONNX Runtime session, sampling. numpy + onnxruntime, never torch."""
