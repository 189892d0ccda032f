"""Importers: a foreign file -> `fastrnn.graph.Graph`. Each knows one format, and imports its library itself."""
