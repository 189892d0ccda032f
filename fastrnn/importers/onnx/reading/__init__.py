"""Bytes -> records: files, nodes, constants, kinds of values, the table of operators."""
