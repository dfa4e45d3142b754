"""Whatever a stranger sends is told in one line that it cannot be answered, and the server lives."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

DEEP = 100_000
CHAT: dict[str, Any] = {"model": "parity", "messages": [{"role": "user", "content": "1 0"}], "max_tokens": 1}
TEXT: dict[str, Any] = {"model": "parity", "prompt": "1 0", "max_tokens": 1}
NO_NUMBERS: list[Any] = ["1", "NaN", [], {}, True, -1e308, 1e308, 10**30, -(10**30)]


def fields() -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, body): wrong values, types, sizes and names, one at a time."""
    for name in ("temperature", "top_p", "min_p", "max_tokens", "n", "iterations", "top_k", "seed", "logprobs"):
        yield from (("completions", {**TEXT, name: value}) for value in NO_NUMBERS)
    for name, values in {
        "max_tokens": [0, 1.5, 41], "n": [0, 17, 1.0], "iterations": [0, 65, 2.5], "temperature": [-0.1, 2.1],
        "top_p": [0, 1.1], "top_k": [0], "min_p": [0], "logprobs": [-1, 21], "best_of": [3, "1"],
        "stream": ["true", 1, {}], "stream_options": [{}, {"include_usage": True}, []], "echo": [True, "no", 1],
        "suffix": ["x", 1], "presence_penalty": [0.5, True], "frequency_penalty": [-1, "0"],
        "logit_bias": [{"4": 1}, []], "capacity": [0.5, [0.5], 2, "half", [], [True], [None]],
        "exit": ["nope", "latent", "latent:nan", "latent:x", 0.03, "gate:0.5", "x" * 101, "latent:1,every=0"],
        "reasoning_effort": ["ultra", "High", 1, [], {"effort": "low"}],
        "stop": [1, "", [""], ["a"] * 5, [1], {}, "x" * 257, [["a"]], ["a", None]],
        "model": ["", "nope", "parity(0)", "parity(65)", "parity(x)", "parity(-1)", "parity(1.5)",
                  "parity(99999999999)", "parity()", "parity(8", "nope(8)", 1, [], {}, "x" * 300, "parity(8)(8)"],
        "prompt": ["", " ", [], [[]], [1.5], [True], [-1], [6], [10**30], ["1", 4], [[["1"]]], {}, 7, "abc",
                   "1 0 " * 9000, ["1"] * 17, ["1", ""], "<end>", "\ud800", [["1"]], [None]],
        "iteration": [8], "itertions": [8], "max_token": [3], "foo": [1], "": [1], "messages": [[]], "\n": [0],
        "tools": [[{"type": "function"}]], "user\n": ["x"],
    }.items():  # fmt: skip
        yield from (("completions", {**TEXT, name: value}) for value in values)
    for name, values in {
        "messages": [None, [], "hi", [1], [{}], [{"role": "user"}], [{"role": "tool", "content": "1"}],
                     [{"role": "user", "content": 1}], [{"role": "user", "content": [{"type": "image_url"}]}],
                     [{"role": "user", "content": [{"type": "text", "text": 1}]}],
                     [{"role": "user", "content": "1", "x": 1}],
                     [{"role": "assistant", "content": "1", "tool_calls": [{}]}], [{"role": 1, "content": "1"}],
                     [{"role": "user", "content": ""}], [{"role": "user", "content": "1", "name": 1}],
                     [{"role": "user", "content": "1"}] * 1025, [{"role": "assistant", "content": ""}],
                     [{"role": "user", "content": "x y"}], [[]], {"role": "user"}],
        "tools": [[{}], {}, "x"], "tool_choice": ["required", {}], "functions": [[{}]], "function_call": [{}],
        "response_format": [{"type": "json_object"}, "json", {}], "modalities": [["audio"]], "audio": [{}],
        "prediction": [{}], "web_search_options": [{}], "verbosity": ["low"], "logprobs": [1, "yes"],
        "top_logprobs": [1, 21, -1, "1"], "max_completion_tokens": [0, 41, "1", 2], "prompt": ["1"], "echo": [False],
    }.items():  # fmt: skip
        yield from (("chat/completions", {**CHAT, name: value}) for value in values)
    yield from (("completions", {name: v for name, v in TEXT.items() if name != left}) for left in ("model", "prompt"))


def bodies() -> Iterator[bytes]:
    """Bodies that are no JSON object."""
    yield from (b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff\xfe", b'{"model": "\xe9"}', b"{} {}", b"{'model': 1}")
    yield from (b'{"model": NaN}', b'{"n": Infinity}', b'{"n": 1, "n": 2}', b'{"a": -Infinity}', b'{"model": "a\x00b"}')
    yield from (b"[" * DEEP, b'{"a":' * DEEP, b'{"n": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}", b'{"model": "a\nb"}')


def requests() -> Iterator[bytes]:
    """Requests as bytes."""
    for path, body in fields():
        yield post(f"/v1/{path}", json.dumps(body).encode())
    yield from (post("/v1/completions", body) for body in bodies())
    yield from (post("/v1/chat/completions", body) for body in bodies())
    good = json.dumps(TEXT).encode()
    for method, path in (
        ("GET", "/v1/completions"), ("PUT", "/v1/completions"), ("DELETE", "/v1/models"), ("POST", "/v1/models"),
        ("POST", "/health"), ("PATCH", "/metrics"), ("GET", "/v2/models"), ("GET", "/v1/models/nope"),
        ("GET", "/page/../served.py"), ("GET", "/page/..%2fserved.py"), ("GET", "/page/nope"), ("GET", "//"),
        ("OPTIONS", "/v1/completions"), ("POST", "/"), ("BREW", "/"), ("GET", "/page/__init__.py"), ("GET", "/%00"),
    ):  # fmt: skip
        yield post(path, good, method=method)
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        yield post("/v1/completions", good, kind=kind)
    for length in ("-1", "x", "1e3", "1000000000000", "9" * 100, "0x10", "+5", "1 2"):
        yield post("/v1/completions", good, length=length)
    yield post("/v1/completions", b" " * ((1 << 20) + 1))
    yield post("/v1/completions", good, host="evil.example")
    yield post("/v1/completions", good, host="127.0.0.1.evil.example")
    yield post("/v1/completions", good, host="")
    yield post("/v1/completions", good, more="Origin: http://evil.example\r\n")
    yield post("/v1/completions", good, more="Origin: null\r\n")
    yield post("/v1/completions", good, more=f"X: {'x' * 700_000}\r\n")
    yield post("/v1/completions", good, more="Transfer-Encoding: nope\r\n")
    yield post("/v1/completions", b"zz\r\n", more="Transfer-Encoding: chunked\r\n", length=None)
    for body in (
        {},
        {"prompt": 1},
        {"prompt": "1 0", "iterations": 65},
        {"prompt": "1 0", "read_at": [0]},
        {"prompts": 1},
    ):
        yield post("/mull/trace", json.dumps({"model": "parity", **body}).encode())
    yield post("/mull/trace", json.dumps({"model": "text", "prompt": "x" * 200, "iterations": 64}).encode())
    yield post("/mull/trace", json.dumps({"model": "plain", "prompt": "x"}).encode())
    yield from (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"HELO there\r\n\r\n",
    )
    yield from (
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    )


def post(
    path: str,
    body: bytes,
    method: str = "POST",
    kind: str = "application/json",
    host: str = "127.0.0.1",
    more: str = "",
    length: str | None = "right",
) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}"
    head += f"Content-Type: {kind}\r\n" if kind else ""
    head += "" if length is None else f"Content-Length: {len(body) if length == 'right' else length}\r\n"
    return f"{head}\r\n".encode() + body


def sent(address: tuple[str, int], request: bytes) -> bytes:
    """What comes back."""
    with socket.create_connection(address, timeout=20) as connection:
        found = b""
        try:
            connection.sendall(request)
            while part := connection.recv(1 << 16):
                found += part
        except (ConnectionResetError, BrokenPipeError):  # it had said what it had to say, and read no further
            pass
        return found


def trouble(answer: bytes) -> str | None:
    """What is wrong with a refusal; None for a right one: a status 4xx, and one line in OpenAI's shape."""
    status = re.match(rb"HTTP/1\.1 (4\d\d) ", answer)
    if not status:
        return "no status 4xx"
    try:
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    except (ValueError, KeyError, TypeError):
        return "no error as JSON"
    line = error["message"]
    fine = set(error) == {"message", "type", "param", "code"} and 10 < len(line) <= 400 and line.isprintable()
    return None if fine else f"no line: {line!r}"


def test_everything_malformed_is_refused(running: Any, client: Any) -> None:
    """Some three hundred requests: each gets a status 4xx and one line, and afterwards all is as before."""
    address = running.server.at.getsockname()
    asked = list(requests())
    found = [(request[:200], trouble(answer), answer[:300]) for request in asked for answer in [sent(address, request)]]
    assert [each for each in found if each[1]] == [] and len(asked) > 200
    said = client.completions.create(model="parity(20)", prompt="1 0 1 1", max_tokens=2)
    assert said.choices[0].text == " odd"


def test_a_misspelt_field_is_told_its_name(running: Any) -> None:
    """`iteration` dropped silently would be an answer of another depth; OpenAI's own fields come with a reason."""
    address = running.server.at.getsockname()
    answer = sent(address, post("/v1/completions", json.dumps({**TEXT, "iteration": 8}).encode()))
    assert b"unknown field iteration, do you mean iterations?" in answer
    answer = sent(address, post("/v1/completions", json.dumps({**TEXT, "iterations": 65}).encode()))
    assert b"iterations must be an integer from 1 to 64, not 65" in answer


def test_harmless_fields_are_accepted(client: Any) -> None:
    """Clients send these, and they change nothing."""
    plain = client.chat.completions.create(**CHAT)
    said = client.chat.completions.create(
        **CHAT, user="me", metadata={"a": "b"}, store=False, presence_penalty=0, frequency_penalty=0.0, logit_bias={},
        tools=[], tool_choice="none", response_format={"type": "text"}, top_p=1, n=1, stop=[], service_tier="auto",
        extra_body={"top_logprobs": None, "exit": None},
    )  # fmt: skip
    assert said.choices[0].message.content == plain.choices[0].message.content
