LEVELS: int
OP_FIELDS: dict[str, tuple[str, ...]]
KINDS: dict[str, int]
