from __future__ import annotations

import string
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from control_plane.resources.names import encode_model, grpc_cluster, rest_cluster

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)
VERSIONS = st.none() | st.integers(0, 2**63 - 1)


@given(NAMES, VERSIONS, NAMES, VERSIONS)
def test_distinct_servables_have_distinct_clusters(
    name: str, version: int | None, other: str, other_version: int | None
) -> None:
    clusters = {grpc_cluster(name, version), rest_cluster(name, version), "@xds"}
    others = {grpc_cluster(other, other_version), rest_cluster(other, other_version), "@xds"}
    assert len(clusters) == 3
    same = (name, version) == (other, other_version)
    assert clusters & others == (clusters if same else {"@xds"})


@given(NAMES)
def test_only_plain_characters_stand_for_themselves(name: str) -> None:
    encoded = encode_model(name)
    assert unquote(encoded) == name
    assert set(encoded) <= set(string.ascii_letters + string.digits + "_.:/+-~%")


def test_spelling() -> None:
    assert encode_model("a/b:c+d-e_f.g~h") == "a/b:c+d-e_f.g~h"
    assert grpc_cluster("50 % ü@", 3) == "50%20%25%20%C3%BC%40@3"
    assert rest_cluster("m") == "@rest/m"
