"""Training of units inside ONNX Runtime: rounding, scales and biases by reconstruction of the float model's outputs."""
