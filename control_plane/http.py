"""The small HTTP port: /healthz (the process runs), /readyz (it can serve Envoys; says why not), /metrics, and what
there is to look at inside (inspection/pages.py).

A thread for each request, so that a scrape never holds up a stream. Readiness is asked through a callable that only
reads.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import parse_qsl
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from control_plane.inspection.loop import LoopBusyError
from control_plane.inspection.pages import Answer, Pages, text

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

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away or was too slow; the base class prints a traceback to stderr.
        log.debug("HTTP request of %s broken off", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    # A client that stops reading a long page must not keep its thread for ever.
    timeout = 60

    def get_stderr(self) -> TextIO:
        # Where wsgiref prints tracebacks past our logs; what is worth telling has been logged by then.
        return io.StringIO()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        log.debug(format, *args)


def _told(path: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks; where one can't be made the answer ends too early, which its reader sees, and the log says why."""
    try:
        yield from chunks
    except LoopBusyError as error:
        log.warning("HTTP page %s cut short: %s", path, error)
        raise
    except Exception:
        log.exception("HTTP page %s can't be made", path)
        raise


class HttpServer:
    """A context manager. `not_ready()` returns the reason why Envoys can't be served, or an empty text.

    Raises OSError from the constructor if the address can't be bound.
    """

    def __init__(
        self, host: str, port: int, metrics: CollectorRegistry, not_ready: Callable[[], str], pages: Pages
    ) -> None:
        self._metrics: Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]] = make_wsgi_app(metrics)
        self._not_ready = not_ready
        self._pages = pages
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
        # WSGI hands the path over as Latin-1, whatever it was.
        path = environ.get("PATH_INFO", "").encode("latin-1", "replace").decode("utf-8", "replace")
        if path == "/metrics":
            return self._metrics(environ, start_response)
        try:
            answer = self._answer(path, environ.get("QUERY_STRING", ""))
        except Exception:
            log.exception("HTTP page %s can't be made", path)
            answer = text(HTTPStatus.INTERNAL_SERVER_ERROR, "this page can't be made; the control plane's log says why")
        start_response(f"{answer.status.value} {answer.status.phrase}", [("Content-Type", answer.content_type)])
        return _told(path, answer.chunks)

    def _answer(self, path: str, query: str) -> Answer:
        if path == "/healthz":
            return text(HTTPStatus.OK, "ok")
        if path == "/readyz":
            reason = self._not_ready()
            return text(HTTPStatus.SERVICE_UNAVAILABLE, reason) if reason else text(HTTPStatus.OK, "ok")
        answer = self._pages.get(path, dict(parse_qsl(query, keep_blank_values=True)))
        return answer or text(HTTPStatus.NOT_FOUND, f"this port has /healthz, /readyz, /metrics, {Pages.PATHS}")
