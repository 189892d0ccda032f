"""PyTorch -> weights by name, and modules -> ONNX."""
