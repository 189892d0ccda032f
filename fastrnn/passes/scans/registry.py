"""The rules that read graph nodes as forms."""

from ...graph.registry import Registry

reads = Registry()  # op -> (reader, node) -> Form or Mask; raises `algebra.Unknown` for a node that has no form
