"""Who may ask: checked before anything of a request is read.

Host             of a server on loopback must name loopback: else a page of a stranger, whose name leads here
                 (DNS rebinding), could ask from within a browser
Origin           must be the server's own where a browser names one; there are no CORS headers
Content-Type     of a POST must be application/json, which no page of a stranger can send unasked
Authorization    Bearer and the key, where the server has one; compared in constant time
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from mull.inference.serve.refusals import Refused

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/", "/health")  # and the files of the page, which hold no secret


@dataclass(frozen=True)
class Guard:
    """See the head of this file.

    Args:
        host: that the server is bound to.
        key: that requests must carry; None for none.
    """

    host: str
    key: bytes | None = None

    @property
    def on_loopback(self) -> bool:
        return is_loopback(self.host)

    def check(self, request: Request) -> None:
        """Raise Refused for who may not ask."""
        host = request.headers.get("host", "")
        name = hostname(host)
        if self.on_loopback and not is_loopback(name) and name != self.host:
            raise Refused(f"Host {host[:60]!r} is not this server's; it answers to {', '.join(LOOPBACK)}", status=421)
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(f"Origin {origin[:60]!r} is another site's; this server answers its own page", status=403)
        if request.method == "POST":
            kind = request.headers.get("content-type", "")
            if kind.split(";")[0].strip().lower() != "application/json":
                raise Refused(f"Content-Type must be application/json, not {kind[:60]!r}", status=415)
        if self.key is not None and not is_open(request.url.path):
            self.check_key(request.headers.get("authorization", ""))

    def check_key(self, given: str) -> None:
        assert self.key is not None
        word, _, key = given.partition(" ")
        right = hmac.compare_digest(key.strip().encode("utf-8", "surrogateescape"), self.key)
        if word.lower() != "bearer" or not right:
            raise Refused("this server wants its key: Authorization: Bearer KEY", status=401, code="invalid_api_key")


def is_open(path: str) -> bool:
    """Whether a path is for everybody."""
    return path in OPEN or path.startswith("/page/")


def hostname(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and no other can reach it; any address of 127.0.0.0/8 is."""
    return host in LOOPBACK or (host.startswith("127.") and host.replace(".", "").isdigit())
