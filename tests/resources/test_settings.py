from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from control_plane.resources.settings import DataPlaneSettings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("listen_address", "localhost"),
        ("grpc_port", 0),
        ("rest_port", 65536),
        ("max_request_bytes", 0),
        ("ejection_time", 0.0),
        ("max_ejection_percent", 101),
        ("stream_window_bytes", 1),
        ("rest_port", 8500),
        ("access_log", "access.json"),
        ("tracing_collector", "collector"),
        ("tracing_percent", 100.5),
        ("observe_percent", -1),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field}: .*{value}"):
        DataPlaneSettings(**{field: value})


def test_every_field_is_explained() -> None:
    for field in dataclasses.fields(DataPlaneSettings):
        assert len(field.metadata["help"]) > 20
