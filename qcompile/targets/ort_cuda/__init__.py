"""ONNX Runtime's CUDA provider: weights alone."""
