"""Programs as ONNX files, and the rules that such a file must obey."""
