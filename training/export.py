"""From a trained network to a checkpoint folder: the weights first, then what they can do at each iteration count.

A crash while measuring loses no weights: the folder is complete but for depth.json, and the same command line measures
again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from mull.checkpoints.card import model_card
from mull.checkpoints.replacing import replace_all
from mull.checkpoints.store import CARD, CONFIG, DEPTH, load, save
from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.results import to_json
from mull.inference.measure.table import print_table
from mull.models import LanguageModel
from mull.models.families import FAMILIES
from mull.training.callbacks import calibrate
from mull.training.progress import measuring, say


def export(network: nn.Module, data: Any, folder: Path, training: str) -> None:
    """Write the checkpoint folder of a trained network, without depth.json.

    Args:
        network: the network with its final weights; one of your own has no folder format, and nothing is written.
        data: its data module, whose held-out batches set the thresholds of routers, and whose tokenizer is saved.
        folder: where the checkpoint goes.
        training: the resolved configuration, as YAML text.
    """
    if not isinstance(network, LanguageModel) or type(network) not in FAMILIES.values():
        say(
            f"a {type(network).__name__} has no folder format; its weights are in {folder / 'trainer'}; make it "
            "a family to evaluate it and to generate (@family, docs/extending.md)"
        )
        return
    network.eval()
    calibrate(network, data.val_dataloader())
    save(network, folder, tokenizer=getattr(data, "tokenizer", None), training=training)
    say(f"wrote {folder}")


def measured_examples(data: Any, batches: int | None) -> int:
    """How many examples of each difficulty a finished run is measured on: at most 512.

    Measuring must not take longer than training. A sequence costs about as much as three passes in training, and at the
    deepest count that is measured four times the mean; so a quarter of the sequences that were trained on is cheaper
    than the training, and short runs are measured on no more, but on 32.

    Args:
        data: the data module.
        batches: training batches of all processes together; None if it is not known.
    """
    size = getattr(data, "batch_size", None)
    if batches is None or not isinstance(size, int):
        return 512
    return max(32, min(512, batches * size // 4 // len(getattr(data, "difficulties", [None]))))


def measure(folder: Path, data: Any, iterations: list[int] | None, command: str, examples: int) -> None:
    """Measure an exported model that has not been measured yet: add depth.json and its table on the card, print it.

    Args:
        folder: the folder that `export` wrote; nothing happens if there is no model, or a depth.json already.
        data: the data module; nothing happens without `evaluation_batches`.
        iterations: the counts to measure at; None for a model without a loop.
        command: the command line that makes these numbers, recorded beside them.
        examples: most examples of each difficulty.
    """
    if not (folder / CONFIG).exists() or (folder / DEPTH).exists() or not hasattr(data, "evaluation_batches"):
        return
    model = load(folder)
    with measuring(data.evaluation_batches(examples=examples), examples) as batches:
        results = evaluate(model, batches, iterations, bytes_per_token=data.bytes_per_token)
    depth = {"command": command, **json.loads(to_json(results))}
    card = model_card(folder.resolve().name, model.config, depth)
    replace_all(folder, {DEPTH: (json.dumps(depth, indent=2) + "\n").encode(), CARD: card.encode()})
    print_table(results)
