"""Models that see all of their input before they answer: keyword spotters and readers of text, after their papers.

spotters   BC-ResNet
readers    CRNN: a convolutional stack, two bidirectional LSTMs, and a CTC or an attention head
"""
