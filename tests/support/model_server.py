"""Servers for tests and benchmarks: one answers by rule, one with any bytes.

    python -m tests.support.model_server --port 8001 [--faults 0.3] [--upstream 8000]

The answers of :class:`ModelServer` are a pure function of the request (including its seed), so that
two runs can be compared answer by answer. With --upstream the answers come from a real server
instead. A fault may be drawn for every request: errors with and without Retry-After, hangs, torn
bodies, bodies that are not JSON, resets. :func:`raw_server` answers with whatever bytes a test
makes up.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FAULTS = ("500", "503", "429", "hang", "torn", "nonsense", "empty", "reset")
STEPS = ("what is asked", "what is seen", "what is known", "what follows", "what it comes to")


def answer(body: dict) -> dict:
    """A chat completion: five steps, or the rest of them, and an answer that is right or not.

    A question holds its share of right answers in per cent, as "[60]". With "cut" in it the
    response is cut off, with "filtered" it is withheld.
    """
    user, *assistant = body["messages"]
    text = next(part["text"] for part in user["content"] if part["type"] == "text")
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    rng = random.Random(digest)
    share = int(text.split("[")[1].split("]")[0]) if "[" in text else 50
    final = "red" if rng.random() < share / 100 else "blue"
    begun = text.partition("The solution has been started:")[2]
    if assistant:
        assert body["continue_final_message"] and not body["add_generation_prompt"]
        begun = assistant[0]["content"]
    first = 1 + max((n for n in range(1, 6) if f"Step {n}:" in begun), default=0)
    lines = [f"Step {n}: {STEPS[n - 1]}, {rng.randrange(1000)}." for n in range(first, 6)]
    lines.append(f"Final answer: {final}")
    content, finish = "\n".join(lines), "stop"
    if "cut" in text:
        content, finish = content[: len(content) // 2], "length"
    if "filtered" in text:
        content, finish = None, "content_filter"
    return {
        "id": digest.hex()[:8],
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": content},
            }
        ],
        "usage": {"prompt_tokens": len(text) // 4, "completion_tokens": len(content or "") // 4},
    }


def score_answer(path: str, log_odds: float, tokens: int = 7) -> dict:
    """What vLLM 0.33.0 answers to a request for one score.

    Its shapes are ``ClassificationResponse`` and ``PoolingResponse`` of
    vllm/entrypoints/pooling/classify/protocol.py and vllm/entrypoints/pooling/pooling/protocol.py.
    """
    found: dict[str, object] = {"index": 0, "object": "pooling", "data": [log_odds]}
    if path == "/classify":
        found = {"index": 0, "label": "log-odds", "probs": [log_odds], "num_classes": 1}
    return {
        "id": f"{path[1:]}-1",
        "object": "list",
        "created": 0,
        "model": "exported",
        "data": [found],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


def hashed_score(body: dict) -> float:
    """A score that depends on every byte of a request."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**30 - 2


ECHOED = {"model": "echo", "messages": [{"content": [{"type": "text", "text": "[50]"}]}]}


class ModelServer:
    """Speaks enough HTTP/1.1 for chat completions, and for the scores of vLLM.

    Args:
        faults: share of requests that go wrong.
        upstream: port of a server that answers instead.
        echo: give every request the same answer without reading it.
        log: file that gets a line for every request answered without a fault: its digest.
    """

    def __init__(
        self,
        faults: float = 0.0,
        upstream: int | None = None,
        log: str | None = None,
        echo: bool = False,
    ) -> None:
        self.faults = faults
        self.upstream = upstream
        self.log = log
        self.echo = response(json.dumps(answer(ECHOED)).encode()) if echo else None
        self.rng = random.Random(0)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length, path = 0, head.split(b" ", 2)[1].decode()
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                body = await reader.readexactly(length)
                if not await self.respond(path, body, writer):
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def respond(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; returns whether the connection stays open."""
        fault = self.rng.choice(FAULTS) if self.rng.random() < self.faults else None
        if self.echo:
            writer.write(self.echo)
            return True
        if b"refuse me" in body:
            writer.write(response(b'{"error": {"message": "cannot read the image"}}', "400"))
            return True
        if b"no such key" in body:
            writer.write(response(b'{"error": {"message": "wrong key"}}', "401"))
            return True
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        if fault in ("500", "503", "429"):
            again = b"Retry-After: 0.1\r\n" if fault == "429" else b""
            writer.write(response(b'{"error": {"message": "try again"}}', fault, again))
            return True
        if fault == "nonsense":
            writer.write(response(b"<html>It works!</html>"))
            return True
        if fault == "empty":
            writer.write(response(b'{"choices": []}'))
            return True
        if self.upstream:
            reply = await asyncio.to_thread(_forward, self.upstream, body)
        elif path in ("/classify", "/pooling"):
            reply = json.dumps(score_answer(path, hashed_score(json.loads(body)))).encode()
        else:
            reply = json.dumps(answer(json.loads(body))).encode()
        if fault == "torn":
            writer.write(response(reply)[: -len(reply) // 2])
            return False
        if self.log:
            with open(self.log, "a") as file:
                file.write(hashlib.sha256(body).hexdigest() + "\n")
        writer.write(response(reply))
        return True


def response(body: bytes, status: str = "200", more: bytes = b"") -> bytes:
    """A whole HTTP response; ``more`` are further lines of its head."""
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    return head.encode() + more + b"\r\n" + body


def last_response(body: bytes, status: str = "200", more: bytes = b"") -> bytes:
    """As :func:`response`, and says that the connection closes after it."""
    return response(body, status, b"Connection: close\r\n" + more)


def _forward(port: int, body: bytes) -> bytes:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return reply.read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], port: int, seconds: float = 120.0):
    """A server in a process of its own, from the moment it listens; gives its base URL."""
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no server from {command}") from error
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def model_server(
    faults: float = 0.0, upstream: int | None = None, log: Path | None = None, echo: bool = False
):
    """A :class:`ModelServer` in a process of its own; gives its base URL."""
    port = free_port()
    command = [sys.executable, "-m", "tests.support.model_server", "--port", str(port)]
    command += ["--faults", str(faults), *(["--echo"] if echo else [])]
    command += ["--upstream", str(upstream)] if upstream else []
    command += ["--log", str(log)] if log else []
    return running(command, port)


def raw_server(
    reply: Callable[[Message, bytes], Iterable[bytes]],
) -> AbstractContextManager[str]:
    """A server in a thread of this process; gives its base URL.

    Args:
        reply: gets headers and body of a request and returns the bytes of a whole HTTP response,
            in any number of pieces; the connection is closed after them.
    """
    return path_server(lambda path, headers, body: reply(headers, body))


@contextmanager
def path_server(reply: Callable[[str, Message, bytes], Iterable[bytes]]) -> Iterator[str]:
    """As :func:`raw_server`, with the path of the request as the first argument of ``reply``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.close_connection = True
            with suppress(ConnectionError):  # the client may have had enough
                for piece in reply(self.path, self.headers, body):
                    self.wfile.write(piece)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--upstream", type=int)
    parser.add_argument("--log")
    parser.add_argument("--echo", action="store_true")
    arguments = parser.parse_args()

    async def serve() -> None:
        handler = ModelServer(arguments.faults, arguments.upstream, arguments.log, arguments.echo)
        server = await asyncio.start_server(handler.handle, "127.0.0.1", arguments.port)
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
