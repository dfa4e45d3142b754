"""From a trained network to a checkpoint folder: the weights first, then what they can do at each iteration count, then
what people read of it, its card and picture.

A crash while measuring loses no weights: the folder is complete but for depth.json, and the same command line measures
again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mull.checkpoints.card import About, model_card
from mull.checkpoints.files import is_there
from mull.checkpoints.replacing import check_no_folders, replace_all
from mull.checkpoints.store import CARD, CONFIG, DEPTH, PICTURE, load, present_card, save, verify
from mull.inference.generate import generate
from mull.inference.measure.evaluate import evaluate
from mull.inference.measure.inspect import read_depth
from mull.inference.measure.plots import draw, png_of
from mull.inference.measure.results import Result, from_json, to_json
from mull.inference.measure.table import print_table
from mull.models import LanguageModel
from mull.models.families import FAMILIES
from mull.training.evaluation import data_of
from mull.training.saying import measuring, say
from mull.training.thresholds import calibrate

LONGEST_ANSWER = 80  # tokens of the example on a card


def export(network: nn.Module, data: Any, folder: Path, training: str, device: str | torch.device = "cpu") -> None:
    """Write the checkpoint folder of a trained network, without depth.json.

    Args:
        network: the network with its final weights; one of your own has no folder format, and nothing is written.
        data: its data module, whose held-out batches set the thresholds of routers, and whose tokenizer is saved.
        folder: where the checkpoint goes.
        training: the resolved configuration, as YAML text.
        device: where the thresholds are set: the trainer has brought the network back to the CPU.

    Raises:
        ValueError: a weight is no finite number, as where an average of weights was told to become none.
    """
    if not isinstance(network, LanguageModel) or type(network) not in FAMILIES.values():
        say(
            f"a {type(network).__name__} has no folder format; its weights are in {folder / 'trainer'}; make it "
            "a family to evaluate it and to generate (@family, docs/extending.md)"
        )
        return
    lost = [name for name, weight in network.state_dict().items() if not weight.isfinite().all()]
    if lost:
        raise ValueError(
            f"{lost[0]} of what was trained has numbers that are not finite, so {folder} gets no model; look at the "
            "callbacks that change weights, or lower the learning rate, with another --output"
        )
    network.to(device).eval()
    if network.config.routed_layers:  # validation batches may take long to make
        calibrate(network, data.val_dataloader())
    network.tokenizer = getattr(data, "tokenizer", None) or network.tokenizer
    save(network, folder, training=training)
    write_card(folder, data, network)
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


def measure(
    folder: Path,
    data: Any,
    iterations: list[int] | None,
    command: str,
    examples: int,
    log: Callable[[list[Result]], None],
    device: str | torch.device = "cpu",
) -> None:
    """Measure an exported model that has not been measured yet: add depth.json and its table on the card, print it.

    Args:
        folder: the folder that `export` wrote; nothing happens if there is no model, or a depth.json already.
        data: the data module; nothing happens without `evaluation_batches`.
        iterations: the counts to measure at; None for a model without a loop.
        command: the command line that makes these numbers, recorded beside them.
        examples: most examples of each difficulty.
        log: told the results before they are written.
        device: where it is measured: that of the training, since the CPU may take longer than the training did.
    """
    if not (folder / CONFIG).exists() or (folder / DEPTH).exists() or not hasattr(data, "evaluation_batches"):
        return
    model = load(folder, device)
    with measuring(data.evaluation_batches(examples=examples), examples) as batches:
        results = evaluate(model, batches, iterations, bytes_per_token=data.bytes_per_token)
    log(results)
    keep_results(folder, data, model, results, command)
    print_table(results)


def keep_results(folder: str | Path, data: Any, model: LanguageModel, results: Sequence[Result], command: str) -> None:
    """Keep results in a checkpoint folder: depth.json, with the command line that makes them, its picture and the card.

    Args:
        folder: the folder.
        data: the data module that the model was trained on; None if it is not known.
        model: its model.
        results: of an evaluation of it.
        command: the command line.
    """
    write_card(Path(folder).expanduser(), data, model, {"command": command, **json.loads(to_json(results))})


def check_keeping(folder: str | Path) -> None:
    """Raise ValueError or OSError where results could not be kept in a checkpoint folder; nothing is left of the
    trial."""
    folder = Path(folder).expanduser()
    present_card(folder)  # whose words are to be kept
    check_no_folders(folder, (DEPTH, PICTURE, CARD))
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}): leave --record out, or measure a copy"
        ) from error


def write_card(folder: Path, data: Any, model: LanguageModel, depth: dict[str, Any] | None = None) -> None:
    """Write the card of a checkpoint folder anew, and the picture of its depth.json, all or none; nothing is measured.

    Args:
        folder: a checkpoint folder.
        data: the data module of its training, which says what the model is for if it has an `about`; None if unknown.
        model: its model, which is asked the example of the card where it is.
        depth: a depth.json to write with them; None takes the one that is there.

    Raises:
        ValueError: depth.json is not what an evaluation writes.
    """
    files: dict[str, bytes] = {}
    if depth is not None:
        files[DEPTH] = (json.dumps(depth, indent=2) + "\n").encode()
    elif is_there(folder / DEPTH):
        depth = read_depth(folder / DEPTH)
    if depth is not None:
        picture = picture_of(from_json(json.dumps(depth)), model, folder, data)
        if picture is not None:
            files[PICTURE] = picture
    about = data.about() if hasattr(data, "about") else None
    shown = PICTURE if PICTURE in files else None
    card = model_card(folder.resolve().name, model.config, depth, asked(model, about), shown, present_card(folder))
    replace_all(folder, {**files, CARD: card.encode()})


def renew_card(folder: str | Path) -> None:
    """Write the card and the picture of a checkpoint folder anew, from what it holds; see `write_card`.

    Raises:
        FileNotFoundError, ValueError: the folder is no sound one.
    """
    folder = Path(folder).expanduser()
    verify(folder)
    write_card(folder, trained_on(folder), load(folder))


def trained_on(folder: str | Path) -> Any:
    """The data module that the model of a folder was trained on, for what it says of itself; None if it is not known.

    Of training.yaml the names of tasks and texts are used, and no text is read. Without one, or with data that mull
    does not know, a card says less.
    """
    try:
        return data_of(folder, trust=True)
    except (FileNotFoundError, ValueError):
        return None


def picture_of(results: Sequence[Result], model: LanguageModel, folder: Path, data: Any) -> bytes | None:
    """The picture of an evaluation, as PNG; None for a model without a loop, which has no counts to draw against.

    Args:
        results: what was measured.
        model: the model; its trained mean is marked.
        folder: of which the picture has the name.
        data: what it is a model of, for the names of difficulties and the line of chance.
    """
    if all(result.iterations is None for result in results):
        return None
    return png_of(
        draw(
            results,
            title=folder.resolve().name,
            chance=getattr(data, "chance", None),
            trained_iterations=model.config.default_iterations,
            difficulty_name=getattr(data, "difficulty_name", "difficulty"),
        )
    )


def asked(model: LanguageModel, about: About | None) -> About | None:
    """What data says of a model, with what the model answers to the prompt of the example."""
    if about is None or about.prompt is None or model.tokenizer is None:
        return about
    try:
        answer = generate(model, about.prompt, max_new_tokens=LONGEST_ANSWER).text
    except ValueError:  # the prompt is longer than the model can read, or the model writes no text (causal: false)
        return replace(about, prompt=None, right=None)
    assert isinstance(answer, str)
    return replace(about, answer=answer, iterations=model.config.default_iterations)
