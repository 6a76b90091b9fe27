"""Running models: sessions, agreement, timing, the kernels that ONNX Runtime made."""
