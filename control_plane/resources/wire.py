"""The two bits of protobuf's wire format that splicing a name into serialised bytes takes.

Invariant: what these give is what protobuf's own serialiser gives for the same field.
"""

from __future__ import annotations

_ONE_BYTE = tuple(bytes((value,)) for value in range(128))


def varint(value: int) -> bytes:
    """A non-negative number as a base-128 varint."""
    if value < 128:
        return _ONE_BYTE[value]
    if value < 1 << 14:
        return bytes((value & 127 | 128, value >> 7))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_field(number: int, value: bytes) -> bytes:
    """A length-delimited field; nothing for an empty value, as proto3 has it."""
    return varint(number << 3 | 2) + varint(len(value)) + value if value else b""


def string_field(number: int, value: str) -> bytes:
    """A string field; nothing for an empty one."""
    return bytes_field(number, value.encode())
