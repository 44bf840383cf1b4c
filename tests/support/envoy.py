"""A real Envoy for a test."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.processes import ChildProcess, binary, wait_for_port
from tests.support.waiting import eventually


class Envoy:
    """One Envoy with the bootstrap given, whose admin interface listens on 127.0.0.1:`admin_port`.

    The constructor waits for the admin interface only; `await ready()` waits until it serves, which with a bootstrap
    that has no control plane yet is never. `override`: YAML or JSON that Envoy merges into the bootstrap.
    """

    def __init__(
        self,
        folder: Path,
        bootstrap: str,
        admin_port: int,
        *,
        name: str = "envoy",
        workers: int = 1,
        override: str = "{}",
    ) -> None:
        self.admin_port = admin_port
        path = folder / f"{name}.yaml"
        path.write_text(bootstrap)
        # No hot restart: it would need a shared-memory id of this Envoy's own.
        arguments = ("--disable-hot-restart", "--concurrency", str(workers), "--log-level", "warning")
        command = [binary("envoy"), "-c", str(path), "--config-yaml", override, *arguments]
        self.child = ChildProcess(command, folder / f"{name}.log")
        try:
            wait_for_port(admin_port, self.child)
        except BaseException:  # nobody can close what was never handed out
            self.child.stop()
            raise

    def admin(self, path: str, *, post: bool = False) -> str:
        """The admin interface's answer, whatever its HTTP status."""
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        request = urllib.request.Request(url, method="POST" if post else "GET")
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return str(response.read(), "utf-8")
        except urllib.error.HTTPError as error:
            return str(error.read(), "utf-8")

    def stats(self, contains: str = "") -> dict[str, int]:
        """Counters and gauges by name."""
        rows = json.loads(self.admin(f"/stats?format=json&filter={contains}"))["stats"]
        return {row["name"]: row["value"] for row in rows if "name" in row}

    def config_dump(self) -> dict[str, Any]:
        """Everything that this Envoy has been told, endpoints included."""
        return dict(json.loads(self.admin("/config_dump?include_eds")))

    async def ready(self, timeout: float = 30.0) -> None:
        """Wait until it has all of its configuration and its listeners are open."""

        def live() -> bool:
            assert self.child.alive(), self.child.output[-4000:]
            return self.admin("/ready").strip() == "LIVE"

        await eventually(live, f"Envoy to be ready; its log says:\n{self.child.output[-2000:]}", timeout)

    def close(self) -> None:
        self.child.stop()


def reporting_to(bootstrap: str, port: int) -> str:
    """The bootstrap with load reports that go to 127.0.0.1:`port` only, whichever control plane configures Envoy."""
    asked = 'grpc_services: [{ envoy_grpc: { cluster_name: "@xds" } }]'
    assert bootstrap.count(asked) == 1
    lines = bootstrap.replace(asked, asked.replace("@xds", "@loads")).splitlines()
    target = f"socket_address: {{ address: 127.0.0.1, port_value: {port} }}"
    http = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    cluster = (
        '    - name: "@loads"',
        "      type: STATIC",
        "      connect_timeout: 1s",
        "      load_assignment:",
        '        cluster_name: "@loads"',
        f"        endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ {target} }} }} }}] }}]",
        "      typed_extension_protocol_options:",
        f"        {http}:",
        f'          "@type": type.googleapis.com/{http}',
        "          explicit_http_config: { http2_protocol_options: {} }",
    )
    place = lines.index("  clusters:") + 1
    return "\n".join((*lines[:place], *cluster, *lines[place:])) + "\n"
