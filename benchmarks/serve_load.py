"""A server under load, on loopback only: nice python benchmarks/serve_load.py [--requests 1000] [--at-once 32]

Three parts, against `mull serve text` in a process of its own:

    soak         requests of mixed depths (1 to 64), lengths, draws and exit rules, some as streams, some whose client
                 goes away: no error, every answer that of mull.generate alone, and memory that does not grow
    throughput   tokens per second with 16 requests at once, against one at a time
    latency      a request of depth 1 while requests of depth 64 are written, against an idle server: medians
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from timing import announce

import mull

TEXT = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips did "
    "Natalia sell altogether in April and May? Weng earns $12 an hour for babysitting. Yesterday, she just did 50 "
    "minutes of babysitting. How much did she earn? Betty is saving money for a new wallet which costs $100."
)


class Server:
    """`mull serve` in a process of its own."""

    def __init__(self, threads: int, dtype: str) -> None:
        command = [sys.executable, "-m", "mull", "serve", "text", "--port", "0", "--threads", str(threads)]
        command += ["--dtype", dtype, "--max-requests", "64"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
        assert found, said
        self.port = int(found[1])
        print(said.strip(), flush=True)

    @property
    def resident(self) -> float:
        """MiB."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024  # type: ignore[index]

    async def ask(self, body: dict[str, Any], leave_after: float | None = None) -> dict[str, Any] | None:
        """The answer, whole or put together from a stream; None for a client that went away after so many seconds."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + content)
        try:
            answer = await asyncio.wait_for(reader.read(), leave_after)
        except TimeoutError:
            return None
        finally:
            writer.close()
        status, _, rest = answer.partition(b"\r\n")
        assert status == b"HTTP/1.1 200 OK", answer
        if not body.get("stream"):
            return json.loads(rest.partition(b"\r\n\r\n")[2])
        parts = [json.loads(part) for part in re.findall(rb"data: (\{.*?\})\n\n", rest)]
        assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), rest[-80:]
        return {"choices": [{"text": "".join(part["choices"][0]["text"] for part in parts)}]}

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(15) == 0


def request(rng: random.Random) -> dict[str, Any]:
    """A request at random; a few of them draw, stream, stop early or have a rule."""
    start, depth = rng.randrange(len(TEXT) - 160), round(64 ** rng.random())
    body: dict[str, Any] = {
        "model": "text",
        "prompt": TEXT[start : start + rng.choice([5, 20, 60, 150])],
        "max_tokens": rng.randint(2, 16),
        "iterations": depth,
        "stream": rng.random() < 0.3,
    }
    if rng.random() < 0.3:
        body |= {"temperature": rng.choice([0.5, 1.0]), "seed": rng.randrange(1000)}
    if rng.random() < 0.1:
        body["exit"] = rng.choice(["latent:0.1", "kl:0.01"])
        body["iterations"] = rng.choice([8, 32])
    return body


def alone(model: Any, body: dict[str, Any]) -> str:
    """What mull.generate says."""
    draws = {"temperature": body.get("temperature", 0.0)}
    if "seed" in body:
        draws["generator"] = torch.Generator().manual_seed(body["seed"])
    found = mull.generate(
        model, body["prompt"], body["iterations"], body.get("exit"), max_new_tokens=body["max_tokens"], **draws
    )
    assert isinstance(found.text, str)
    return found.text


async def soak(server: Server, bodies: Sequence[dict[str, Any]], count: int, at_once: int, seed: int) -> list[Any]:
    """(body, text) of all answers; of each tenth request the client goes away."""
    rng, gate, found = random.Random(seed), asyncio.Semaphore(at_once), []

    async def one(number: int) -> None:
        async with gate:
            body = rng.choice(bodies)
            answer = await server.ask(body, leave_after=rng.random() if number % 10 == 0 else None)
            if answer is not None:
                found.append((body, answer["choices"][0]["text"]))

    before = server.resident
    for start in range(0, count, count // 10):
        await asyncio.gather(*(one(start + number) for number in range(count // 10)))
        if start == 0:
            before = server.resident  # the pools of torch and of Python have filled
        print(f"  after {start + count // 10:5} requests: {server.resident:.0f} MiB resident", flush=True)
    print(f"  growth after the first tenth: {server.resident - before:.1f} MiB; {count - len(found)} clients went away")
    return found


async def throughput(server: Server, iterations: int, rounds: int, tokens: int = 48, requests: int = 16) -> None:
    """Tokens per second, one request at a time and 16 at once, in turns: the medians of rounds."""
    body = {"model": "text", "iterations": iterations, "max_tokens": tokens}
    bodies = [{**body, "prompt": TEXT[start : start + 40 + start]} for start in range(requests)]
    rates: dict[int, list[float]] = {1: [], 16: []}

    async def one(body: dict[str, Any], gate: asyncio.Semaphore) -> int:
        async with gate:
            answer = await server.ask(body)
            assert answer is not None
            return answer["usage"]["completion_tokens"]

    for at_once in (1, 16) * rounds:
        gate, start = asyncio.Semaphore(at_once), time.perf_counter()
        new = sum(await asyncio.gather(*(one(body, gate) for body in bodies)))
        rates[at_once].append(new / (time.perf_counter() - start))
    ratio = statistics.median(many / single for single, many in zip(rates[1], rates[16], strict=True))
    single, many = (statistics.median(rates[at_once]) for at_once in (1, 16))
    print(
        f"  {iterations} iterations: {single:.0f} tokens/s one at a time, {many:.0f} with 16 at once: {ratio:.1f} "
        "times as many",
        flush=True,
    )


async def latency(server: Server, deep_rows: int, rounds: int, requests: int = 10) -> None:
    """Median seconds of a depth-1 request of 16 tokens, on an idle server and beside requests of depth 64, in turns."""
    shallow = {"model": "text", "prompt": TEXT[:40], "max_tokens": 16, "iterations": 1}

    async def times() -> list[float]:
        found = []
        for _ in range(requests):
            start = time.perf_counter()
            await server.ask(shallow)
            found.append(time.perf_counter() - start)
        return found

    async def deep() -> None:
        while True:
            await server.ask({"model": "text", "prompt": TEXT[:60], "max_tokens": 64, "iterations": 64})

    await times()
    idle, loaded = [], []
    for _ in range(rounds):
        idle += await times()
        load = [asyncio.create_task(deep()) for _ in range(deep_rows)]
        await asyncio.sleep(3)
        loaded += await times()
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
        await asyncio.sleep(1)
    alone, beside = statistics.median(idle), statistics.median(loaded)
    print(
        f"  depth 1, 16 tokens: {1000 * alone:.0f} ms idle, {1000 * beside:.0f} ms beside {deep_rows} requests of "
        f"depth 64: {beside / alone:.2f} times as long",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--distinct", type=int, default=250, help="requests that are different from each other")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput and latency, in turns")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="same")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", default="throughput,latency,soak")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    announce()
    print(f"nice {os.nice(0)}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    server, parts = Server(options.threads, options.dtype), options.parts.split(",")
    try:
        if "throughput" in parts:
            print("throughput")
            for iterations in (1, 8, 32):
                asyncio.run(throughput(server, iterations, options.rounds))
        if "latency" in parts:
            print("latency")
            for rows in (1, 15):
                asyncio.run(latency(server, rows, options.rounds))
        if "soak" in parts:
            print("soak")
            rng = random.Random(options.seed)
            bodies = [request(rng) for _ in range(options.distinct)]
            found = asyncio.run(soak(server, bodies, options.requests, options.at_once, options.seed))
            model = mull.load("text", dtype=None if options.dtype == "same" else getattr(torch, options.dtype))
            expected = {json.dumps(body): alone(model, body) for body in bodies}
            wrong = [(body, text) for body, text in found if text != expected[json.dumps(body)]]
            for body, text in wrong[:5]:
                print(f"  {body}: {text!r}, alone {expected[json.dumps(body)]!r}")
            print(f"  {len(found) - len(wrong)} of {len(found)} answers are those of mull.generate alone")
    finally:
        server.end()
    print("the server ended with status 0")


if __name__ == "__main__":
    main()
