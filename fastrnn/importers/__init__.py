"""Importers: a foreign file -> `fastrnn.graph.Graph`. Each importer knows one format and imports its library itself."""
