"""Models of the recurrences of today, written after their papers, and what fastrnn makes of them.

cells      diagonal recurrences, whose gates depend on the input: a vector is carried
gated      gated recurrences, whose gates depend on the state too
matrices   linear attention and its relatives: a matrix is carried
encoders   layers of streaming speech models, with caches
forms      a cell as a step, a scripted loop, a scan, and in its parallel form; exported by both of PyTorch's exporters
trials     what is tried of each file
"""
