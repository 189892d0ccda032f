RANK: int
TYPE_CODES: dict[str, int]
