from typing import Any

from ..machine._isa import PackedCell

def cell_scratch(packed: PackedCell, rows: Any, y_stored: bool, masked: bool) -> Any: ...
