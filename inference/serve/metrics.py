"""What a server counts, as text that Prometheus reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Metrics:
    """Counts since the start. The thread that thinks writes those of tokens, that of the requests the others.

    Attributes:
        requests: by (endpoint, status).
        in_flight: requests that are being answered or wait for it.
        waiting: rows that wait for a place, `writing` those that write, `cache_bytes` what their caches may come to.
        steps: calls that gave each row of a batch its next token; `tokens` per step say how full the batches were.
        first_seconds, first_count: from request to first token, summed, and of how many.
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    in_flight: int = 0
    waiting: int = 0
    writing: int = 0
    cache_bytes: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    iterations: int = 0
    flops: float = 0.0
    steps: int = 0
    cancelled: int = 0
    first_seconds: float = 0.0
    first_count: int = 0

    def text(self) -> str:
        """The page of the endpoint /metrics."""
        lines = ["# HELP mull_requests_total Requests by endpoint and status.", "# TYPE mull_requests_total counter"]
        for (endpoint, status), count in sorted(self.requests.items()):
            lines.append(f'mull_requests_total{{endpoint="{endpoint}",status="{status}"}} {count}')
        for name, kind, value, said in (
            ("requests_in_flight", "gauge", self.in_flight, "Requests that are answered or wait."),
            ("rows_waiting", "gauge", self.waiting, "Answers that wait for a place."),
            ("rows_writing", "gauge", self.writing, "Answers that are being written."),
            ("cache_bytes", "gauge", self.cache_bytes, "Bytes that keys and values of these may come to."),
            ("prompt_tokens_total", "counter", self.prompt_tokens, "Tokens of prompts that were read."),
            ("tokens_total", "counter", self.tokens, "Tokens that were written."),
            ("iterations_total", "counter", self.iterations, "Iterations spent on written tokens."),
            ("flops_total", "counter", self.flops, "Forward FLOPs, prompts included."),
            ("batches_total", "counter", self.steps, "Batches that wrote a token of each of their rows."),
            ("cancelled_total", "counter", self.cancelled, "Requests whose client went away."),
        ):
            lines += [f"# HELP mull_{name} {said}", f"# TYPE mull_{name} {kind}", f"mull_{name} {value}"]
        name = "mull_first_token_seconds"
        lines += [f"# HELP {name} From request to first token.", f"# TYPE {name} summary"]
        lines += [f"{name}_sum {self.first_seconds:.6f}", f"{name}_count {self.first_count}"]
        return "\n".join(lines) + "\n"
