"""Export: from a Hugging Face model to a Triton model folder that holds packed ONNX graphs, proven against its source.

The only place where torch, transformers and onnx live; nothing on the serving side imports this package. Importing the
package itself, ``command`` or ``options`` is cheap; ``text_generation`` pulls torch in.
"""
