"""Recurrences that an exporter unrolled, rolled up again (follows)."""


def roll_up(nodes):
    return nodes
