SCAN_OPERANDS: tuple[str, ...]
