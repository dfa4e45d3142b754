"""`mull serve`: options, and what is refused before anything listens."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mull.inference.arguments import add_device, at_least
from mull.inference.console import dtype_of
from mull.inference.serve.limits import Limits
from mull.inference.serve.served import Served

KEY = "MULL_API_KEY"
MAX_KEY = 4096
M_MMAP_THRESHOLD, LARGE = -3, 1 << 20  # of glibc's malloc.h; bytes


def add_options(parser: Any) -> None:
    """The options of the command."""
    usual = Limits()
    parser.add_argument(
        "folders", nargs="*", default=[], help="further folders, served beside the first by their names"
    )
    parser.add_argument("--host", default="127.0.0.1", help=f"address; any but loopback needs a key ({KEY})")
    parser.add_argument("--port", type=at_least(0, 65535), default=8000, help="0 takes a free one, and says which")
    parser.add_argument(
        "--api-key-file", type=str, help=f"file whose first line is the key that requests carry ({KEY})"
    )
    parser.add_argument("--max-iterations", type=at_least(1, 10_000), default=usual.max_iterations, help="of a request")
    parser.add_argument("--max-tokens", type=at_least(1), default=usual.max_tokens, help="new tokens of an answer")
    parser.add_argument(
        "--max-requests", type=at_least(1, 10_000), default=usual.max_requests, help="in flight, those that wait too"
    )
    parser.add_argument("--max-rows", type=at_least(1, 1024), default=usual.max_rows, help="answers in one batch")
    parser.add_argument(
        "--cache-mib",
        type=at_least(1),
        default=usual.cache_bytes >> 20,
        help="of keys and values, all answers together",
    )
    parser.add_argument("--threads", type=at_least(1, 1024), help="of the processor (default: torch's own number)")
    add_device(parser)


def run(options: Any) -> None:
    """Serve until a signal comes.

    Raises:
        FileNotFoundError, ValueError: a folder or an option is wrong, or the extra is missing; nothing was served then.
    """
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ValueError(f"mull serve needs {missing[0]}, which is not installed: pip install 'mull[serve]'")
    from mull.inference.serve.application import Service
    from mull.inference.serve.guard import Guard
    from mull.inference.serve.running import Server, listening

    guard = Guard(options.host, key_of(options.api_key_file))
    if guard.key is None and not guard.on_loopback:
        raise ValueError(
            f"--host {options.host} lets other machines in, which needs a key: set {KEY} or give --api-key-file, "
            "or leave --host out"
        )
    limits = Limits(
        options.max_iterations, options.max_tokens, options.max_requests, options.max_rows, options.cache_mib << 20
    )
    if options.threads:
        torch.set_num_threads(options.threads)
    give_memory_back()
    at = listening(options.host, options.port)
    try:
        models = models_of([options.folder, *options.folders], limits, options.device, dtype_of(options.dtype))
        server = Server(Service(models, limits, guard), at)
        threads = torch.get_num_threads()
        print(
            f"mull serves {', '.join(models)} at {server.url} ({threads} thread{'s' * (threads > 1)}); Ctrl-C ends",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        server.serve_forever()
    finally:
        at.close()


def give_memory_back() -> None:
    """Have large blocks, which are caches that come and go with requests, returned to the system when they are freed:
    glibc would keep more and more of them for later. Elsewhere nothing is done."""
    if sys.platform == "linux":
        own = ctypes.CDLL(None)
        if hasattr(own, "mallopt"):
            own.mallopt(M_MMAP_THRESHOLD, LARGE)


def models_of(folders: Sequence[str], limits: Limits, device: str, dtype: torch.dtype | None) -> dict[str, Served]:
    """The models by name. Raises ValueError for two of one name, besides what loading raises."""
    models: dict[str, Served] = {}
    for folder in folders:
        served = Served.of(folder, limits, device, dtype)
        if served.name in models:
            raise ValueError(f"two folders are called {served.name}: rename one of them, requests ask by this name")
        models[served.name] = served
    return models


def key_of(file: str | None) -> bytes | None:
    """The key that requests carry; None where there is none.

    Raises:
        OSError, ValueError: the file cannot be read, or the key is empty or not ASCII.
    """
    if file is not None:
        lines = Path(file).expanduser().read_bytes()[:MAX_KEY].splitlines()
        found, where = (lines[0].strip() if lines else b""), f"--api-key-file {file}"
    else:
        given = os.environ.get(KEY)
        if given is None:
            return None
        found, where = given.strip().encode("utf-8", "surrogateescape"), KEY
    if not found:
        raise ValueError(f"{where} holds no key; write one there, or leave it out")
    if not all(0x20 <= byte < 0x7F for byte in found):
        raise ValueError(f"{where} holds a key that no header carries; write letters, digits and signs of ASCII")
    return found
