"""HOST:PORT in both directions."""

from __future__ import annotations

import pytest

from registry.addresses import is_here, join_address, split_address


@pytest.mark.parametrize(
    ("text", "parts"),
    [("tfs:8500", ("tfs", 8500)), ("10.0.0.1:1", ("10.0.0.1", 1)), ("[::1]:65535", ("::1", 65535))],
)
def test_there_and_back(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts
    assert join_address(*parts) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((text, "is not HOST:PORT") for text in ("", "host", ":1")),
        *((f"host:{port}", "is not a TCP port") for port in ("", "0", "65536", "x", "-1", "٣", "9" * 5000)),
        ("::1:8500", "needs brackets"),
        *((text, "is no host") for text in ("a b:1", "h}:1", "[]:1", "[h:1", "a/b:1", "a'b:1")),
    ],
)
def test_what_is_no_address_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"is not HOST:PORT") as raised:
        split_address(text)
    assert why in str(raised.value)


def test_which_addresses_are_here() -> None:
    assert is_here("127.0.0.1")
    # Reserved for documentation: nobody's.
    assert not is_here("192.0.2.1")
