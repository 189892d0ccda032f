class Region:
    bytes: int  # read-only

    def __init__(self, huge: bool = False) -> None: ...
