"""Importers: a foreign file -> `fastrnn.graph.Graph`. Each subpackage knows one format and imports its library itself."""
