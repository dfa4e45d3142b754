"""Writes golden.json.gz, the record that test_golden.py checks: `python tests/golden/record.py`, from the repository.

With `--only WORDS` only the cases whose name contains one of the words are computed, the others stay as they are; what
changed is printed. Which numbers hang by a thread, and could differ on another machine, is told by `--shake`: it
computes everything again with weights that differ in their last digits, and names the cases that leave their tolerance.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import cases
import torch

import mull

RECORD = Path(__file__).with_name("golden.json.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names of cases")
    parser.add_argument("--shake", action="store_true", help="write nothing: noise of 1e-14 on all weights")
    options = parser.parse_args()
    assert mull.__file__ and (RECORD.parents[2] / "__init__.py").samefile(mull.__file__), "mull is another tree's"
    torch.set_num_threads(1)
    every = cases.every_case()
    old = json.loads(gzip.decompress(RECORD.read_bytes())) if RECORD.exists() else {}
    record: dict[str, Any] = {name: old[name] for name in every if name in old}
    if options.shake:
        torch.manual_seed(0)
        cases.JITTER = 1e-14
    for name, case in every.items():
        if any(word in name for word in options.only):
            record[name] = cases.condensed(case.compute())
            for problem in cases.differences(record[name], old.get(name, {}), case):
                print(f"{name}: {problem}")
    if not options.shake:
        lines = json.dumps(record, indent=0, sort_keys=True).encode()
        RECORD.write_bytes(gzip.compress(lines, mtime=0))
        print(f"{len(record)} cases, {RECORD.stat().st_size:,} bytes in {RECORD.name}")


if __name__ == "__main__":
    main()
