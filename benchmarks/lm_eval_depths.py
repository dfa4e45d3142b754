"""What depths cost in lm-evaluation-harness: python benchmarks/lm_eval_depths.py [--rounds 3] [--limit 24]

Tasks of the log-likelihood kind on the shipped text model, made of the pages of docs/: a rolling one, and one of four
choices, a paragraph's own end among the ends of others. Wall-clock of `mull lm-eval --iterations 1,4,16`, the harness's
own work at each count included, against 16 alone and against the three counts one after the other; loading of model and
tasks is left out of all. Goal: at most 1.25 times 16 alone.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from timing import announce, ratio, take_turns

ROOT = Path(__file__).parents[1]
KINDS = {
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    "metric_list: [{metric: bits_per_byte}]\n",
    "choices": "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: '{{choices}}'\n"
    "doc_to_target: 0\nmetric_list: [{metric: acc}]\n",
}


def write_tasks(folder: Path) -> None:
    """Two tasks of paragraphs of docs/, cut in two."""
    pages = [page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))]
    texts = [text[:600] for page in pages for text in page.split("\n\n") if len(text) > 300 and text[0].isalpha()]
    ends = [text[200:260] for text in texts]
    rows = [
        {"text": text[:200], "choices": [ends[(n + k) % len(ends)] for k in range(4)]} for n, text in enumerate(texts)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "dataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
    for name, kind in KINDS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{kind}")


def contestant(names: list[str], folder: str, counts: list[int], limit: int) -> Callable[[], object]:
    """A run of the tasks at these counts; nothing is kept from the run before."""
    from mull.inference.harness.command import evaluated, quiet
    from mull.inference.harness.model import MullLM
    from mull.inference.harness.tasks import load_tasks

    with quiet():
        tasks = load_tasks(names, [folder])
    options = SimpleNamespace(seed=0, limit=limit, batch_size=8, device="cpu")

    def run() -> None:
        with quiet():
            lm = MullLM("text", max(counts), also=counts, batch_size=8)
            for count in counts:
                evaluated(lm.at(count), tasks, options)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=24, help="examples of each task")
    options = parser.parse_args()
    announce()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("HF_DATASETS_CACHE", folder)
        write_tasks(Path(folder))
        for names in (["rolling"], ["choices"]):
            each = {str(count): contestant(names, folder, [count], options.limit) for count in (1, 4, 16)}
            runs = {"1,4,16": contestant(names, folder, [1, 4, 16], options.limit), **each}
            seconds = take_turns(runs, options.rounds)
            apart = {**seconds, "apart": [sum(three) for three in zip(*(seconds[name] for name in each), strict=True)]}
            for name, taken in apart.items():
                print(f"{names[0]:8} {name:7} {sorted(taken)[len(taken) // 2]:.2f} s")
            print(f"{names[0]:8} 1,4,16 / 16 alone: {ratio(apart, '1,4,16', '16'):.2f} (goal: at most 1.25)")
            print(f"{names[0]:8} 1,4,16 / the three apart: {ratio(apart, '1,4,16', 'apart'):.2f}")


if __name__ == "__main__":
    main()
