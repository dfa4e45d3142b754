"""One server for all tests of a session, on a free port of loopback, with the shipped models in fp64: there a batch and
a row alone differ by less than anything that a test could meet, so answers must be equal."""

from collections.abc import Iterator
from threading import Thread
from time import sleep
from typing import Any, NamedTuple

import pytest
import torch

import mull
from mull.models import LanguageModel

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from mull.inference.serve.application import Service
from mull.inference.serve.guard import Guard
from mull.inference.serve.limits import Limits
from mull.inference.serve.running import Server, listening
from mull.inference.serve.served import Served

LIMITS = Limits(max_iterations=64, max_tokens=40, max_requests=24, max_rows=16)


class Running(NamedTuple):
    """A server that runs, with what it serves."""

    server: Server
    service: Service
    thread: Thread

    @property
    def url(self) -> str:
        return self.server.url

    def model(self, name: str) -> LanguageModel:
        return self.service.models[name].model


def started(models: list[Served], limits: Limits, guard: Guard | None = None) -> Running:
    service = Service({each.name: each for each in models}, limits, guard or Guard("127.0.0.1"))
    server = Server(service, listening("127.0.0.1", 0))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return Running(server, service, thread)


def ended(running: Running) -> None:
    running.server.end()
    running.thread.join(10)
    assert not running.thread.is_alive()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Served]:
    """One of each family, with a core and without."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("served") / "plain"
    config = mull.TransformerConfig(vocab_size=257, d_model=24, n_heads=3, n_layers=2, max_length=128)
    mull.save(mull.Transformer(config), folder, mull.load("text").tokenizer)
    return [Served.of(name, LIMITS, dtype=torch.float64) for name in ("text", "parity", "inner-thinking", str(folder))]


@pytest.fixture(scope="session")
def running(models: list[Served]) -> Iterator[Running]:
    found = started(models, LIMITS)
    yield found
    ended(found)


@pytest.fixture(scope="session")
def client(running: Running) -> Any:
    """The official client."""
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test that asked the server, no request is in flight and no row has a place."""
    yield
    if "running" in request.fixturenames or "client" in request.fixturenames:
        metrics = request.getfixturevalue("running").service.metrics
        for _ in range(500):  # a client may go on before its server does
            if not metrics.in_flight and not metrics.writing:
                break
            sleep(0.01)
        assert (metrics.in_flight, metrics.writing, metrics.waiting, metrics.cache_bytes) == (0, 0, 0, 0)
