"""Adds its ops to the table when it is imported."""
