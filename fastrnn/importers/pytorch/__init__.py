"""PyTorch files -> named weights, and PyTorch modules -> ONNX."""
