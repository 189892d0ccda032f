"""Messages of gRPC from bytes that may be hostile.

protobuf itself has no bound on what a message becomes in memory: two bytes make an empty tensor of about a hundred, and
one byte a number of eight. So of a large message, all but its raw tensors is bounded before it is parsed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from .faults import Fault, invalid
from .messages import message

LARGE = 64 << 10  # bytes from which a message is looked at first
MOST_FIELDS = 4096  # of a large message
MOST_OTHER_BYTES = 4 << 20  # of a large message besides raw_input_contents
RAW = 7  # the number of raw_input_contents in a ModelInferRequest


class Malformed:
    """What a method gets in place of a message that can't be read."""

    name = model_name = model_version = id = ""
    ready = False

    def __init__(self, fault: Fault, size: int):
        self.fault, self._size = fault, size

    def ByteSize(self) -> int:
        """As that of a message."""
        return self._size


def parser(name: str) -> Callable[[bytes], Any]:
    """bytes -> message of this name, or Malformed."""
    parse = message(name).FromString

    def parsed(data: bytes) -> Any:
        try:
            if len(data) > LARGE:
                check_large(data)
            return parse(data)
        except DecodeError as error:
            return Malformed(invalid(f"the message is not a {name}: {error}"), len(data))
        except Fault as fault:
            return Malformed(fault, len(data))

    return parsed


def check_large(data: bytes) -> None:
    """Fault: a message has too many fields, or too many bytes that are not raw tensors."""
    at = fields = other = 0
    while at < len(data):
        begin = at
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise invalid(f"the message has a field of kind {kind}, which no message of this protocol has")
        fields += 1
        if tag >> 3 != RAW:
            other += at - begin
        if fields > MOST_FIELDS or other > MOST_OTHER_BYTES:
            raise Fault(
                "RESOURCE_EXHAUSTED",
                "message_size",
                f"a message may have {MOST_FIELDS} fields, and {MOST_OTHER_BYTES} bytes besides raw_input_contents: "
                "send tensors as raw bytes",
            )


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(the number there, where it ends)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise invalid("the message ends in the middle of a number, or has one of more than 64 bits")
