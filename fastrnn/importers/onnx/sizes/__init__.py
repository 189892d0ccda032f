"""Which sizes of a file are free: symbols, what speaks against freeing one, and how frozen numbers are read again."""
