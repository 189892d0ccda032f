HELD: dict[str, int]
RANK: int
TYPE_CODES: dict[str, int]
