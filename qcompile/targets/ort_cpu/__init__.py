"""ONNX Runtime, CPU provider."""
