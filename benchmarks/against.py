"""The working tree against an old commit, in one run: python benchmarks/against.py OLD_COMMIT [--rounds 7] [--only A,B]

Both trees run in processes of their own that take turns (old, new, old, new, ...) at the same workload, so that a
shared machine's moods cancel out. The table has the median milliseconds of a run in each tree, the median over rounds
of new divided by old, and the range of that. A text that the two trees do not write alike is marked: its time may then
be that of other work. With --equal nothing is timed: every YAML of configs/ is made tiny and trained for ten steps in
both trees with the same overrides, and the losses and the final weights are compared bit for bit. Only what is public
is called, so that old and new may differ inside as they like.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import mull

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[[], Any]  # one run of a workload; the text that it wrote, if it wrote one


def recurrent(n_prelude: int, n_core: int, n_coda: int, d_model: int) -> Any:
    torch.manual_seed(0)
    layers = {"n_prelude": n_prelude, "n_core": n_core, "n_coda": n_coda}
    return mull.RecurrentDepthTransformer(
        mull.RecurrentDepthConfig(vocab_size=512, d_model=d_model, n_heads=4, **layers)
    )


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(512, (rows, length), generator=torch.Generator().manual_seed(1))


def generate(model: Any, ids: Tensor, decoder: str | None = None, **options: Any) -> Run:
    """`mull.generate` by a decoder written as `speculate:4:16`: its `decode`, or in older trees `speculate="4:16"`."""
    name, _, how = (decoder or "").partition(":")
    options |= {"max_new_tokens": 48, "stop_tokens": ()}

    def run() -> Any:
        try:
            return mull.generate(model, ids, decode=decoder, **options).tokens.tolist()
        except TypeError:
            return mull.generate(model, ids, **({name: how} if decoder else {}), **options).tokens.tolist()

    return run


def decoding(rows: int, compiled: bool = False) -> Run:
    model = recurrent(2, 4, 2, 256).eval()
    if compiled:
        model.compile_decoding()
    return generate(model, tokens(rows, 128), iterations=8)


def shipped(rows: int, **options: Any) -> Run:
    """The shipped text model writes on: random weights leave the loop late, and drafts of theirs are refused."""
    model = mull.load(Path(mull.__file__ or "").parent / "checkpoints" / "text")
    line = b"Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    ids = torch.tensor([list(line[3 * row : 3 * row + 64]) for row in range(rows)])
    return generate(model, ids, iterations=32, **options)


def answer(model: Any, ids: Tensor, prefill: bool = False, **given: Any) -> Run:
    """Forward in eval mode, or into a new cache."""

    @torch.inference_mode()
    def run() -> None:
        model.eval()(ids, **given, **({"cache": model.new_cache(*ids.shape)} if prefill else {}))

    return run


def step(model: Any, ids: Tensor, **given: Any) -> Run:
    """Forward and backward of a training step."""

    def run() -> None:
        F.cross_entropy(model.train()(ids, **given).logits.flatten(0, 1), ids.flatten()).backward()
        model.zero_grad()

    return run


def routed(kind: Callable[..., Run]) -> Run:
    """A run of an inner-thinking model, half of whose tokens take each routed pass."""
    torch.manual_seed(0)
    model = mull.InnerThinkingTransformer(mull.InnerThinkingConfig(vocab_size=512, d_model=256, n_heads=4, n_layers=4))
    model.calibrate(tokens(4, 256))
    return kind(model, tokens(4, 256), capacity=0.5)


WORKLOADS: dict[str, Callable[[], Run]] = {
    "decoding": lambda: decoding(1),  # 48 tokens after 128
    "decoding-batch": lambda: decoding(8),
    "exits": lambda: shipped(8, exit="latent:0.03"),  # 48 tokens after 64
    "speculation": lambda: shipped(1, decoder="speculate:4:16"),
    "wavefront": lambda: shipped(1, decoder="wavefront:4:32"),
    "prefill": lambda: answer(recurrent(2, 4, 2, 256), tokens(4, 256), prefill=True, iterations=8),
    "routed-training": lambda: routed(step),
    "routed-eval": lambda: routed(answer),
    "training": lambda: step(recurrent(2, 4, 2, 256), tokens(4, 128), iterations=8),
    "training-small": lambda: step(recurrent(1, 1, 1, 64), tokens(4, 128), iterations=8),
    "sweep": lambda: answer(recurrent(2, 4, 2, 128), tokens(4, 128), iterations=32, read_at=[1, 2, 4, 8, 16, 32]),
    "compiled": lambda: decoding(1, compiled=True),  # the last, only when named: half a minute, and a C++ compiler
}


def files_of(tree: Path, name: str) -> list[Path]:
    """The YAML file of a configuration, after that of its base where it only changes one: base_change over base."""
    file = tree / "configs" / f"{name}.yaml"
    if "data" in yaml.safe_load(file.read_text()):
        return [file]
    said = re.search(r"# Run: mull train (.*)", file.read_text())
    assert said, f"{file} changes another file, and its first comment does not say which"
    return [tree / word for word in said[1].split() if word.endswith(".yaml")]


def train(name: str, folder: Path) -> dict[str, Any]:
    """Ten tiny steps of a configuration of this tree: losses as hexadecimal floats, and a hash of the weights."""
    from mull.cli import main as command

    files, output = files_of(folder / "mull", name), folder / name
    config = {"d_model": 16, "d_ff": 24, "n_heads": 2}
    trainer = {"max_steps": 10, "val_check_interval": 10, "log_every_n_steps": 1, "enable_progress_bar": "false"}
    data: dict[str, Any] = {"batch_size": 2, "validation_examples": 2}
    if "TextData" in files[0].read_text():
        (folder / "text.txt").write_text("".join(f"Line {i}, about the number {i * i}.\n" for i in range(1200)))
        data = {"batch_size": 2, "validation_windows": 2, "length": 16, "held_out": 0.3, "fields": "null"}
        data |= {"paths": f"[{folder / 'text.txt'}]", "cache": folder / "cache"}
    words = [f"--config={file}" for file in files] + [f"--output={output}", f"--threads={torch.get_num_threads()}"]
    for place, fields in (("trainer", trainer), ("data.init_args", data), ("model.network.init_args.config", config)):
        words += [f"--{place}.{field}={value}" for field, value in fields.items()]
    command(["train", *words])
    with next(output.glob("trainer/logs/*/metrics.csv")).open() as lines:
        losses = [float(row["train/loss"]).hex() for row in csv.DictReader(lines) if row["train/loss"]]
    weights = sorted(load_file(output / "model.safetensors").items())
    content = b"".join(key.encode() + value.numpy().tobytes() for key, value in weights)
    return {"losses": losses, "weights": hashlib.sha256(content).hexdigest()}


def serve(folder: Path) -> None:
    """Answer requests, a line of JSON each, until there are none: ["time", workload] or ["train", configuration]."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed goes to the log
    ready: dict[str, Run] = {}
    for line in sys.stdin:
        kind, name = json.loads(line)
        try:
            if kind == "time" and name not in ready:
                ready = {name: WORKLOADS[name]()}  # the models of the one before are let go
            start = time.perf_counter()
            said = train(name, folder) if kind == "train" else {"text": ready[name]()}
            said["seconds"] = time.perf_counter() - start
        except Exception as error:  # noqa: BLE001  # it is told, and the other workloads go on
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), file=answers, flush=True)


class Tree:
    """A process that runs a tree, which lies as `mull` in a temporary folder; `configs` are the names of its YAMLs."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.side, self.log = folder.name, folder / "log"
        self.configs = {path.stem for path in (folder / "mull" / "configs").glob("*.yaml")}
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": str(threads), "MULL_TRACEBACK": "1"}
        command = [sys.executable, __file__, "--serve", str(folder), "--threads", str(threads)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log.open("w")}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def ask(self, kind: str, name: str) -> dict[str, Any]:
        """Hand a request over and wait; a RuntimeError for what fails there."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps([kind, name]), file=self.process.stdin, flush=True)
        said = json.loads(self.process.stdout.readline() or json.dumps({"error": self.log.read_text()[-300:]}))
        if "error" in said:
            raise RuntimeError(f"the {self.side} tree fails: {said['error']}")
        return said


def compare_times(old: Tree, new: Tree, name: str, options: argparse.Namespace) -> str:
    """The columns of the table."""
    pairs = [(old.ask("time", name), new.ask("time", name)) for _ in range(options.rounds + 1)]
    before, after = ([said["seconds"] for said in side][1:] for side in zip(*pairs, strict=True))  # after a warm-up
    ratios = [b / a for a, b in zip(before, after, strict=True)]
    middle = [1e3 * statistics.median(before), 1e3 * statistics.median(after), statistics.median(ratios)]
    mark = "" if all(a["text"] == b["text"] for a, b in pairs) else "   another text"
    return "{:9.1f} {:9.1f} {:8.3f}   {:.3f} .. {:.3f}".format(*middle, min(ratios), max(ratios)) + mark


def compare_training(old: Tree, new: Tree, name: str) -> str:
    """Equal, or where it begins to differ."""
    for tree in (old, new):
        if name not in tree.configs:
            return f"not in the {tree.side} tree"
    one, other = old.ask("train", name), new.ask("train", name)
    for count, (a, b) in enumerate(zip(one["losses"], other["losses"], strict=True), start=1):
        if a != b:
            return f"different from step {count} on: loss {float.fromhex(a)!r}, in the new tree {float.fromhex(b)!r}"
    return "equal" if one["weights"] == other["weights"] else "different: equal losses, other weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="HEAD", help="the old tree")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help=f"some of {','.join(WORKLOADS)}; with --equal, some of configs/")
    parser.add_argument("--equal", action="store_true", help="compare ten training steps of every configuration")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        return serve(options.serve)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "new").mkdir()
        Path(folder, "new", "mull").symlink_to(ROOT, target_is_directory=True)
        subprocess.run(["git", "archive", "-o", f"{folder}/old.tar", options.commit], cwd=ROOT, check=True)
        shutil.unpack_archive(f"{folder}/old.tar", f"{folder}/old/mull", filter="data")
        old, new = (Tree(Path(folder, side), options.threads) for side in ("old", "new"))
        names = sorted(old.configs | new.configs) if options.equal else list(WORKLOADS)[:-1]
        print(f"the working tree against {options.commit}; torch {torch.__version__}, {options.threads} threads each")
        print(f"{'configuration':32}" if options.equal else f"{'workload':32}    old ms    new ms  new/old   range")
        with old.process, new.process:  # they end when nothing can be asked any more
            for name in options.only.split(",") if options.only else names:
                try:
                    said = compare_training(old, new, name) if options.equal else compare_times(old, new, name, options)
                except RuntimeError as error:
                    said = str(error)
                print(f"{name:32} {said}", flush=True)


if __name__ == "__main__":
    main()
