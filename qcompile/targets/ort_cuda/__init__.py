"""Float graphs of fake-quantized values."""
