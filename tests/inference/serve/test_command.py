"""`mull serve` as a command: what it refuses before it listens, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mull import cli
from mull.inference.serve import application, command, replies
from mull.inference.serve.limits import Limits
from mull.inference.serve.tracing import traced

from .test_malformed import TEXT, post, sent

HERE = Path(__file__).parents[4]


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line of a command that is refused."""
    status = cli.main(["serve", *args])
    said = capsys.readouterr()
    assert status == 2 and said.out == "" and said.err.count("\n") == 1 and said.err.startswith("mull: error: ")
    return said.err


def test_what_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One line and status 2, and the port stays free."""
    monkeypatch.delenv("MULL_API_KEY", raising=False)
    assert "there is no checkpoint folder nowhere" in refusal(capsys, "nowhere")
    assert "causal: false" in refusal(capsys, "sudoku", "--port", "0")
    for host in ("0.0.0.0", "192.168.1.1", "::", "example.org"):
        assert "needs a key: set MULL_API_KEY" in refusal(capsys, "parity", "--host", host)
    assert "cannot be listened at" in refusal(capsys, "parity", "--host", "127.0.0.300")
    assert "two folders are called parity" in refusal(capsys, "parity", "parity", "--port", "0")
    (tmp_path / "key").write_text("\n")
    assert "holds no key" in refusal(capsys, "parity", "--api-key-file", str(tmp_path / "key"))
    (tmp_path / "key").write_text("schlüssel\n")
    assert "no header carries" in refusal(capsys, "parity", "--api-key-file", str(tmp_path / "key"))
    assert "No such file" in refusal(capsys, "parity", "--api-key-file", str(tmp_path / "none"))
    assert "invalid integer from 0 to 65,535; value: '70000'" in refusal(capsys, "parity", "--port", "70000")
    assert "value: '0'" in refusal(capsys, "parity", "--max-requests", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is in use" in refusal(capsys, "parity", "--port", str(port))
    monkeypatch.setenv("MULL_API_KEY", " ")
    assert "MULL_API_KEY holds no key" in refusal(capsys, "parity")


def test_the_extra_may_be_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the command says how to get it; its help needs nothing."""
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else 1)
    assert "mull serve needs uvicorn, which is not installed: pip install 'mull[serve]'" in refusal(capsys, "parity")
    code = "import sys; sys.modules['uvicorn'] = sys.modules['starlette'] = None\nfrom mull import cli\n"
    code += "raise SystemExit(cli.main(['serve', '--help']))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **path()})
    assert run.returncode == 0 and "--max-iterations" in run.stdout, run.stderr


def path() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def process() -> Iterator[tuple[Any, tuple[str, int]]]:
    """`mull serve` in a process of its own, with its address."""
    code = "from mull import cli\nfrom mull.inference.serve import running\n"
    code += "running.GRACE = 0.6\n"  # seconds; nobody waits for three
    code += "raise SystemExit(cli.main(['serve', 'text', '--port', '0', '--threads', '1']))"
    args = [sys.executable, "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != "MULL_API_KEY"} | path()
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stderr is not None
        said = running.stderr.readline()
        found = re.fullmatch(r"mull serves text at http://127\.0\.0\.1:(\d+) \(1 thread\); Ctrl-C ends\n", said)
        assert found, said
        yield running, ("127.0.0.1", int(found[1]))
        running.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(process: tuple[Any, tuple[str, int]], number: signal.Signals) -> None:
    """An answer that can end in time does, one that cannot is told why, status 0, nothing printed, the port free."""
    running, address = process
    asked = {**TEXT, "model": "text", "prompt": "Tom has", "stream": True, "iterations": 64, "max_tokens": 500}
    bodies = [json.dumps({**asked, **more}).encode() for more in ({}, {"iterations": 1, "max_tokens": 12})]
    held = [socket.create_connection(address, timeout=30) for _ in bodies]
    for connection, body in zip(held, bodies, strict=True):
        connection.sendall(post("/v1/completions", body))
    begun = [connection.recv(1 << 16) for connection in held]
    assert all(part.startswith(b"HTTP/1.1 200 OK") for part in begun)
    running.send_signal(number)
    answers = [part + rest(connection) for part, connection in zip(begun, held, strict=True)]
    assert running.wait(20) == 0 and running.stderr.read() == running.stdout.read() == ""
    assert all(answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for answer in answers)
    assert b"the server is shutting down" in answers[0] and b'"finish_reason": "length"' in answers[1]
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(address)


def rest(connection: socket.socket) -> bytes:
    found = b""
    while part := connection.recv(1 << 16):
        found += part
    return found


def test_health_and_metrics(running: Any) -> None:
    """What an operator looks at."""
    address = running.server.at.getsockname()
    before = running.service.metrics.tokens
    sent(address, post("/v1/completions", json.dumps({**TEXT, "iterations": 40}).encode()))
    assert sent(address, post("/health", b"", method="GET")).endswith(b'{"status":"ok"}')
    page = sent(address, post("/metrics", b"", method="GET")).decode()
    numbers = dict(re.findall(r"^(mull_\w+(?:\{.*\})?) ([\d.e+]+)$", page, re.MULTILINE))
    assert int(numbers["mull_tokens_total"]) == before + 1 and "mull_requests_in_flight" in numbers
    assert int(numbers['mull_requests_total{endpoint="/v1/completions",status="200"}']) > 0
    assert all(
        re.fullmatch(r"# (HELP|TYPE) mull_.*|mull_\S+ \S+|", line)
        for line in page.rpartition("\r\n\r\n")[2].split("\n")
    )


def test_the_page(running: Any) -> None:
    """`/` is the page, under a policy that loads nothing from elsewhere."""
    address = running.server.at.getsockname()
    for where in ("/", "/page/index.html"):
        head, _, body = sent(address, post(where, b"", method="GET")).partition(b"\r\n\r\n")
        assert b"200 OK" in head and b"default-src 'self'" in head and body.startswith(b"<!doctype html>")


def test_an_error_that_nobody_foresaw(running: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """It is told as every other, to the client in one line, and to whoever runs the server where it came from."""
    address = running.server.at.getsockname()
    before = running.service.metrics.requests["/mull/trace", 500]
    monkeypatch.setattr(application, "picture", lambda asked: asked.no_such_thing)
    answer = sent(address, post("/mull/trace", json.dumps({"model": "text", "prompt": "Tom"}).encode()))
    assert answer.startswith(b"HTTP/1.1 500 ") and b'"type":"server_error"' in answer and b"no_such_thing" in answer
    assert "AttributeError" in capfd.readouterr().err
    assert running.service.metrics.requests["/mull/trace", 500] == before + 1
    monkeypatch.setattr(replies.Reply, "streamed", lambda *_: 1 // 0)
    body = {**TEXT, "stream": True}
    told = sent(address, post("/v1/completions", json.dumps(body).encode()))
    assert b"the server failed" in told and b"data: [DONE]" in told and "ZeroDivisionError" in capfd.readouterr().err


def test_a_trace_that_nobody_waits_for_is_not_made(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces are made one at a time; clients that have gone while theirs waited cost nothing."""
    address, made, go = running.server.at.getsockname(), [], threading.Event()
    monkeypatch.setattr(application, "picture", lambda asked: made.append(asked) or (go.wait(20) and "{}"))
    request = post("/mull/trace", json.dumps({"model": "text", "prompt": "Tom"}).encode())
    connections = [socket.create_connection(address, timeout=20) for _ in range(4)]
    for place, connection in enumerate(connections, 1):
        connection.sendall(request)
        until(lambda count=place: made and running.service.metrics.in_flight == count)
    for connection in connections[1:]:
        connection.close()
    for _ in range(2):  # by then the server has seen them go
        sent(address, post("/health", b"", method="GET"))
    go.set()
    assert rest(connections[0]).endswith(b"{}")
    until(lambda: running.service.metrics.in_flight == 0)
    assert len(made) == 1


def until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it does not become true")


def test_a_trace(running: Any) -> None:
    """The data of the page of mull trace, for both kinds of model."""
    address = running.server.at.getsockname()
    for name, layers in (("text", None), ("inner-thinking", [1, 3])):
        body = json.dumps({"model": f"{name}(4)", "prompt": "Tom has", "read_at": [1, 2, 4], "top": 2}).encode()
        answer = json.loads(sent(address, post("/mull/trace", body)).partition(b"\r\n\r\n")[2])
        (run,) = answer["runs"]
        assert (run["iterations"], run["counts"], len(run["tokens"])) == (4, [1, 2, 4], 7)
        assert answer["title"] == name and (run.get("routers") or {}).get("layers") == layers
        assert "".join(answer["vocabulary"][token] for token in run["tokens"]) == "Tom has"
    short = traced({"model": "text", "prompt": "Tom"}, running.service.models, Limits(max_iterations=2))
    assert short.iterations == 2  # who names no count is not refused for that of training
