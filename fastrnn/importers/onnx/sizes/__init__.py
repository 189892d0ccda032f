"""Which sizes of a file are free: symbols, evidence against freeing one, and reinterpretation of frozen numbers."""
