INTEGER_FUNCTIONS: dict[str, int]
