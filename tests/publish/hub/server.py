"""A hub on loopback: real HTTP, a real disk, and faults that happen when a test has planned them."""

import contextlib
import errno
import re
import shutil
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.publish.hub.api import Answer, Api, Person, Refused, Request
from tests.publish.hub.store import Store


@dataclass(kw_only=True)
class Fault:
    """What goes wrong, where and how often. `on`: a pattern over "METHOD path"."""

    on: str
    times: int = 1
    skip: int = 0  # so many requests go well first
    status: int | None = None  # answered instead of what was asked
    headers: Mapping[str, str] = field(default_factory=dict)
    say: str = "planned by the test"
    cut_after: int | None = None  # bytes of the body that are read before the connection breaks
    lose_answer: bool = False  # all is done, and the connection breaks before the answer
    hold: bool = False  # no answer comes until the test lets go, and then the connection breaks
    before: Callable[[], None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A request as it was. `received`: bytes of its body."""

    method: str
    path: str
    received: int
    status: int  # 0: the connection broke


@dataclass(kw_only=True)
class Hub:
    """`people`: token -> who it is."""

    api: Api
    people: dict[str, Person]
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def store(self) -> Store:
        return self.api.store

    def begin(self, root: Path) -> None:
        """Forget everything, and keep what comes under another folder."""
        self.api.store = Store(root=root)
        self.api.xet = False
        self.seen, self.faults = [], []
        self.release()

    def plan(self, on: str, **what: Any) -> None:
        self.faults.append(Fault(on=on, **what))

    def release(self) -> None:
        """Break the connections of requests that are held; faults that were planned are off."""
        self.faults.clear()
        self.released.set()
        self.released = threading.Event()

    def due(self, method: str, path: str) -> Fault | None:
        with self.store.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.on, f"{method} {path}"):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def requests(self, pattern: str) -> list[Seen]:
        return [
            request
            for request in self.seen
            if re.search(pattern, f"{request.method} {request.path}")
        ]

    def bytes_to_storage(self) -> int:
        """Bytes of large files that came in, those of broken attempts too."""
        return sum(request.received for request in self.requests("PUT /large/|POST /v1/xorbs/"))

    def state(self) -> dict[str, tuple[bool, str, frozenset[str]]]:
        """What anyone could see: repository -> private, head, files."""
        return {
            name: (repo.private, repo.head.oid, frozenset(repo.head.files))
            for name, repo in self.store.repos.items()
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def handle_one(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        fault = self.hub.due(self.command, path)
        try:
            if fault and fault.hold:
                self.hub.released.wait()
                self.close_connection = True
                return
            if fault and fault.cut_after is not None:
                announced = int(self.headers.get("Content-Length", 0))
                self._break_off(path, len(self.rfile.read(min(fault.cut_after, announced))))
                return
            body = self._body()
            if fault and fault.before:
                fault.before()
            if fault and fault.status:
                answer = Answer.of({"error": fault.say}, fault.status, **fault.headers)
            else:
                answer = self._asked(path, dict(parse_qsl(url.query)), body)
            if fault and fault.lose_answer:
                self._break_off(path, len(body))
                return
            self._seen(path, len(body), answer.status)
            self._send(answer)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

    def _asked(self, path: str, query: Mapping[str, str], body: bytes) -> Answer:
        try:
            sent = self.headers.get("Authorization", "")
            person = self.hub.people.get(sent.removeprefix("Bearer "))
            if sent and person is None and not path.startswith(("/large/", "/v1/", "/v2/")):
                raise Refused(401, "Invalid credentials in Authorization header")
            request = Request(
                method=self.command,
                path=path,
                query=query,
                headers=dict(self.headers.items()),
                body=body,
                base=self.hub.url,
                person=person,
                signed=bool(sent),
            )
            return self.hub.api.answer(request)
        except Refused as refused:
            return refused.answer()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return Refused(507, "Insufficient Storage: the disk is full").answer()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, answer: Answer) -> None:
        body = answer.body
        size = body.stat().st_size if isinstance(body, Path) else len(body)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(size), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(body, Path):
            with body.open("rb") as handle:
                shutil.copyfileobj(handle, self.wfile)
        else:
            self.wfile.write(body)

    def _break_off(self, path: str, received: int) -> None:
        """Reset the connection, as a failing network does."""
        self._seen(path, received, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _seen(self, path: str, received: int, status: int) -> None:
        request = Seen(method=self.command, path=path, received=received, status=status)
        self.hub.seen.append(request)

    def log_message(self, *_: Any) -> None:
        """Tests read `seen` instead."""


@contextlib.contextmanager
def running_hub(root: Path, people: dict[str, Person], **settings: Any) -> Iterator[Hub]:
    """A hub that keeps its files under `root` and listens on a free port until the block ends."""
    hub = Hub(api=Api(store=Store(root=root), **settings), people=people)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
