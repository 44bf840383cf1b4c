"""Request bytes, spelled by hand: what protobuf's own serialiser would never write is legal too."""

from __future__ import annotations


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes | str) -> bytes:
    """A length-delimited field."""
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def spec(name: str, version: int | None = None, label: str | None = None, signature: str | None = None) -> bytes:
    """The inside of a ModelSpec."""
    parts = field(1, name) if name else b""
    if version is not None:
        parts += field(2, b"\x08" + varint(version) if version else b"")
    if signature is not None:
        parts += field(3, signature)
    if label is not None:
        parts += field(4, label)
    return parts


def request(
    name: str, version: int | None = None, label: str | None = None, signature: str | None = None, payload: bytes = b""
) -> bytes:
    """A request with its model_spec first, as all official clients send it, and a payload in field 2."""
    return field(1, spec(name, version, label, signature)) + (field(2, payload) if payload else b"")
