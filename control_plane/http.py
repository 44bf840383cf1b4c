"""The small HTTP port: /healthz (the process runs), /readyz (it can serve Envoys; says why not), /metrics.

A thread of its own, so that a scrape never holds up a stream. Readiness is asked through a callable that only reads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # WSGIServer asks the resolver for this host's full name, which can take seconds and is used by nobody.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        log.debug(format, *args)


class HttpServer:
    """A context manager. `not_ready()` returns the reason why Envoys can't be served, or an empty text.

    Raises OSError from the constructor if the address can't be bound.
    """

    def __init__(self, host: str, port: int, metrics: CollectorRegistry, not_ready: Callable[[], str]) -> None:
        self._metrics: Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]] = make_wsgi_app(metrics)
        self._not_ready = not_ready
        self._server = _Server((host, port), _Handler)
        self._server.set_app(self._app)
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_port)

    def __enter__(self) -> HttpServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return self._metrics(environ, start_response)
        status, text = "200 OK", "ok"
        if path == "/readyz" and (reason := self._not_ready()):
            status, text = "503 Service Unavailable", reason
        elif path not in ("/healthz", "/readyz"):
            status, text = "404 Not Found", "this port has /healthz, /readyz and /metrics"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]
