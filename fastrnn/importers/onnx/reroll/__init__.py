"""Recurrences that were written out become cells again: unrolled copies, chains, Loop and Scan."""
