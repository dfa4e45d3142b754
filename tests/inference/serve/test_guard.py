"""Who may ask, and how much: host, origin, key, bytes, seconds, requests in flight, keys and values."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mull.inference.serve import application
from mull.inference.serve import running as running_module
from mull.inference.serve.guard import Guard, hostname, is_loopback
from mull.inference.serve.limits import Limits

from .conftest import ended, started
from .test_malformed import TEXT, post, sent

SLOW = {**TEXT, "model": "text", "prompt": "Tom has", "iterations": 64, "max_tokens": 900, "stream": True}


@pytest.fixture
def small(models: list[Any]) -> Iterator[Callable[..., Any]]:
    """small(guard or limits) -> a server of its own with the models of all."""
    made = []

    def start(guard: Guard | None = None, **limits: int) -> Any:
        found = started(models, Limits(**{"max_iterations": 64, "max_tokens": 40, **limits}), guard)
        made.append(found)
        return found

    yield start
    for each in made:
        ended(each)


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def test_a_key_is_wanted_of_all_but_health_and_page(small: Callable[..., Any]) -> None:
    """On loopback too, of every endpoint that thinks or tells; a wrong key is as good as none."""
    address = small(Guard("127.0.0.1", b"secret")).server.at.getsockname()
    body = json.dumps(TEXT).encode()
    for more, expected in (
        ("", 401), ("Authorization: Bearer wrong\r\n", 401), ("Authorization: secret\r\n", 401),
        ("Authorization: Basic secret\r\n", 401), ("Authorization: Bearer \xe9\r\n", 401),
        ("Authorization: Bearer secret\r\n", 200), ("authorization: bearer  secret \r\n", 200),
    ):  # fmt: skip
        assert status(sent(address, post("/v1/completions", body, more=more))) == expected, more
    for path, expected in {
        "/health": 200,
        "/": 200,
        "/v1/models": 401,
        "/metrics": 401,
        "/v1/models/text": 401,
    }.items():
        assert status(sent(address, post(path, b"", method="GET"))) == expected, path
    assert status(sent(address, post("/mull/trace", body))) == 401


def test_hosts_and_origins(running: Any) -> None:
    """A name of a stranger that leads to loopback is no way in, nor is a page of another site."""
    address = running.server.at.getsockname()
    body, port = json.dumps(TEXT).encode(), address[1]
    for host in ("localhost", f"localhost:{port}", "127.0.0.1", "[::1]:80", "127.0.0.2"):
        assert status(sent(address, post("/v1/completions", body, host=host))) == 200, host
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "0.0.0.0",
        "[::2]",
        "127.evil.example",
    ):
        assert status(sent(address, post("/v1/completions", body, host=host))) == 421, host
    own = f"Origin: http://127.0.0.1:{port}\r\n"
    answer = sent(address, post("/v1/completions", body, host=f"127.0.0.1:{port}", more=own))
    assert status(answer) == 200 and b"access-control" not in answer.lower()
    assert status(sent(address, post("/v1/completions", body, host=f"127.0.0.1:{port + 1}", more=own))) == 403
    assert [is_loopback(hostname(name)) for name in ("LOCALHOST:1", "[::1]", "127.1.2.3:80")] == [True] * 3
    assert not any(is_loopback(hostname(name)) for name in ("", "::1]", "127.x", "128.0.0.1", "[fe80::1]", "a:b:c"))


def test_requests_in_flight_are_limited(small: Callable[..., Any]) -> None:
    """One more than the limit is told to come again, and may when a place is free; a client that goes frees its own."""
    server = small(max_requests=2, max_tokens=900)
    address, metrics = server.server.at.getsockname(), server.service.metrics
    held = [socket.create_connection(address) for _ in range(2)]
    for connection in held:
        connection.sendall(post("/v1/completions", json.dumps(SLOW).encode()))
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
    answer = sent(address, post("/v1/completions", json.dumps(TEXT).encode()))
    assert status(answer) == 429 and b"retry-after: 1" in answer and b"in flight" in answer
    held[0].close()
    wait(lambda: metrics.in_flight == 1)
    assert status(sent(address, post("/v1/completions", json.dumps(TEXT).encode()))) == 200
    held[1].close()
    wait(lambda: metrics.writing == 0)
    assert metrics.cancelled == 2 and metrics.requests["/v1/completions", 429] == 1


def test_what_would_not_fit_is_told_or_waits(small: Callable[..., Any]) -> None:
    """Keys and values are bounded: a request beyond all bounds is refused, others wait until there is room."""
    server = small(cache_bytes=20 << 20)  # fp64: an iteration of a position takes 4 kB
    address, peak = server.server.at.getsockname(), [0]
    answer = sent(address, post("/v1/completions", json.dumps({**SLOW, "max_tokens": 40, "n": 2}).encode()))
    assert status(answer) == 400 and b"MiB, above the limit of 15" in answer
    body = {**SLOW, "iterations": 16, "max_tokens": 20, "stream": False}

    def ask() -> None:
        assert status(sent(address, post("/v1/completions", json.dumps(body).encode()))) == 200
        peak[0] = max(peak[0], server.service.metrics.cache_bytes)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    wait(lambda: server.service.metrics.waiting > 0 or server.service.metrics.steps > 100)
    for thread in threads:
        thread.join()
    assert peak[0] <= 15 << 20 and server.service.metrics.requests["/v1/completions", 200] == 12


def test_bodies_have_limits(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is announced or found to be too long is not read to its end, and a slow one is not waited for."""
    address = running.server.at.getsockname()
    long = post("/v1/completions", b"", length=str((1 << 20) + 1))
    assert status(sent(address, long)) == 413
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    endless = post("/v1/completions", chunk * 3, more="Transfer-Encoding: chunked\r\n", length=None)
    assert status(sent(address, endless)) == 413
    monkeypatch.setattr(application, "BODY_SECONDS", 0.05)
    slow = sent(address, post("/v1/completions", b"{", length="100"))
    assert status(slow) == 408 and b"did not come within 0.05 seconds" in slow
    monkeypatch.setattr(running_module, "BODY_SECONDS", 0.05)
    assert sent(address, b"GET / HTTP/1.1\r\nHost: 127.0") == b""  # a head that never ends: closed


def wait(true: Callable[[], bool]) -> None:
    """Until something is so; a test that waits in vain fails at the next line."""
    event = threading.Event()
    for _ in range(2000):
        if true():
            return
        event.wait(0.005)
    raise AssertionError("waited in vain")
