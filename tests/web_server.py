"""A web server on this machine that speaks HTTPS, and a proxy that leads every name to it, as if it were anywhere."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from certificate_pairs import make_pair

NAMES = ("files.example", "elsewhere.example", "localhost")


@dataclass
class Answer:
    """What the server says to a request."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Hang up after so many bytes."""


@dataclass
class WebServer:
    """The server and its proxy. What a path answers is taken from its list one by one; the last one stays."""

    certificate: Path
    port: int = 0
    proxy_port: int = 0
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Host and path with the headers, in lower case."""
    tunnels: list[str] = field(default_factory=list)
    """The host:port that the proxy was asked for."""

    def environment(self) -> dict[str, str]:
        """For a client that trusts the server and uses the proxy."""
        return {
            "SSL_CERT_FILE": str(self.certificate),
            "HTTPS_PROXY": f"http://127.0.0.1:{self.proxy_port}",
            "NO_PROXY": "",
        }

    def say(self, path: str, *answers: Answer | bytes) -> str:
        """Set what a path answers; its URI."""
        self.answers[path] = [one if isinstance(one, Answer) else Answer(one) for one in answers]
        return f"https://files.example{path}"

    def answer(self, path: str) -> Answer:
        """The next answer."""
        given = self.answers.get(path, [Answer(status=404)])
        return given.pop(0) if len(given) > 1 else given[0]


@contextmanager
def serving(folder: Path) -> Iterator[WebServer]:
    """Run the server and its proxy."""
    pair = make_pair(folder, *(f"DNS:{name}" for name in NAMES))
    web = WebServer(pair / "tls.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair / "tls.crt", pair / "tls.key")
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": web}))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    web.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    listener = socket.create_server(("127.0.0.1", 0))
    web.proxy_port = listener.getsockname()[1]
    threading.Thread(target=_accept, args=(listener, web), daemon=True).start()
    try:
        yield web
    finally:
        listener.close()
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: clients that do not trust the certificate hang up."""


class _Handler(BaseHTTPRequestHandler):
    web: WebServer

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.web.requests.append((f"{headers.get('host', '')}{self.path}", headers))
        answer = self.web.answer(self.path)
        etag = answer.headers.get("ETag")
        if etag is not None and headers.get("if-none-match") == etag:
            answer = Answer(status=304, headers={"ETag": etag})
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.content)), **answer.headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.content[: answer.cut_after])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests are recorded."""


def _accept(listener: socket.socket, web: WebServer) -> None:
    with suppress(OSError):
        while True:
            near, _ = listener.accept()
            threading.Thread(target=_tunnel, args=(near, web), daemon=True).start()


def _tunnel(near: socket.socket, web: WebServer) -> None:
    """Answer CONNECT, and lead it to the server whatever the name."""
    with suppress(OSError), near:
        head = b""
        while b"\r\n\r\n" not in head:
            head += near.recv(4096)
        web.tunnels.append(head.split()[1].decode())
        with socket.create_connection(("127.0.0.1", web.port)) as far:
            near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            other = threading.Thread(target=_pump, args=(far, near), daemon=True)
            other.start()
            _pump(near, far)
            other.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
