"""Bytes to records: files, nodes, constants, what a value can be, the table of operators."""
