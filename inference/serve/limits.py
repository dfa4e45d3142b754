"""How much may be asked of a server: depth is a knob of cost, and everybody may turn it.

a request      iterations <= max_iterations, new tokens <= max_tokens, answers <= MAX_ANSWERS, body <= MAX_BODY
all requests   in flight <= max_requests; the rows that write at once, and the bytes of their caches, are bounded,
               and whoever does not fit waits for its turn
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_ANSWERS = 16  # of one request, prompts x n
MAX_BODY = 1 << 20  # bytes
BODY_SECONDS = 10.0  # in which the body of a request must have come
SEND_SECONDS = 30.0  # in which a client must take what is sent to it
MAX_STOP, MAX_STOP_LENGTH = 4, 256
MAX_TOP = 20  # likeliest tokens told of each position
MAX_TRACED = 4096  # positions x iterations of a trace
GRACE = 3.0  # seconds in which answers that are being written may end by themselves at shutdown


@dataclass(frozen=True)
class Limits:
    """See the head of this file.

    Args:
        max_iterations: most iterations of a request.
        max_tokens: most new tokens of an answer.
        max_requests: requests in flight, those that wait included; one more is told to come again.
        max_rows: answers that are written at once.
        cache_bytes: keys and values of all rows that write.
    """

    max_iterations: int = 128
    max_tokens: int = 512
    max_requests: int = 64
    max_rows: int = 32
    cache_bytes: int = 2 << 30
