"""The network server: sequences behind the Open Inference Protocol."""
