"""Turns written-out recurrences back into cells: unrolled copies, chains, Loop and Scan."""
