"""Who is to write, as a command names it: a folder of mull, one of transformers, or a model behind an endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mull.checkpoints import load, load_tokenizer
from mull.checkpoints.files import MAX_JSON, damaged, read_bytes, read_json
from mull.checkpoints.huginn import is_huginn
from mull.checkpoints.names import folder_of
from mull.checkpoints.store import CONFIG
from mull.inference.strategies.endpoint import EndpointSolver, check_patience
from mull.inference.strategies.folder import FolderSolver
from mull.inference.strategies.hugging_face import HuggingFaceSolver
from mull.inference.strategies.ordinary import ORDINARY, marks_with
from mull.inference.strategies.solver import Marks, Solver
from mull.models.families import FAMILIES

OURS = "mull"  # the word for mull's own marks
# what transformers raises for a folder that is none, or damaged
MISTAKES = (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError)


def solver_from(
    folder: str | Path | None = None,
    *,
    endpoint: str | None = None,
    model: str | None = None,
    marks: Mapping[str, str] | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    timeout: float = 60.0,
    retries: int = 2,
    batch_size: int = 64,
) -> Solver:
    """Who writes.

    Args:
        folder: a checkpoint folder of mull, or the name of one; or a folder in the layout of transformers.
        endpoint: address of an OpenAI-compatible server, http://127.0.0.1:8000/v1, in place of a folder.
        model: its name there.
        marks: texts by which the writer structures answers, in place of the usual ones; see `Marks`.
        device: of a folder.
        dtype: of a folder's weights; None is as they are stored.
        timeout: seconds that an endpoint may be silent.
        retries: how often an endpoint is asked again.
        batch_size: texts of a folder that are written at once.

    Raises:
        FileNotFoundError, ValueError: nothing is there, it cannot be opened, or an extra is missing.
    """
    check_patience(timeout, retries)
    if endpoint is not None:
        if folder is not None:
            raise ValueError(f"{folder} and an endpoint cannot both write one answer: leave one of them out")
        if not model:
            raise ValueError(f"the endpoint {endpoint} may have several models: name one with --model NAME")
        return EndpointSolver(endpoint, model, marks_with(marks or {}), timeout=timeout, retries=retries)
    if folder is None:
        raise ValueError("nobody is named to write: name a folder, or --endpoint ADDRESS and --model NAME")
    if model is not None:
        raise ValueError(f"--model {model} is the name of a model behind an endpoint: add --endpoint, or leave it out")
    place = folder_of(folder)
    if not is_ours(place):
        return transformers_solver(place, marks_with(marks or {}), device, batch_size, dtype)
    writer = load(place, device, dtype)
    if writer.tokenizer is None:
        writer.tokenizer = load_tokenizer(place)  # says what is missing
    return FolderSolver(writer, marks_with(marks or {}, Marks()), batch_size)


def is_ours(folder: Path) -> bool:
    """Whether a folder is opened by mull itself: one of its families, or the public recurrent-depth layout. What cannot
    be read is left to mull's own store, which says why."""
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return True
    kind = config.get("model_type")
    return not isinstance(kind, str) or kind in FAMILIES or is_huginn(config)


def transformers_solver(
    folder: Path,
    marks: Marks = ORDINARY,
    device: str = "cpu",
    batch_size: int = 16,
    dtype: torch.dtype | None = None,
) -> HuggingFaceSolver:
    """The solver of a folder in the layout of transformers; none of its own code is run, no weights are read from a
    pickle, and nothing is fetched.

    Raises:
        ValueError: the extra is missing, or the folder cannot be opened.
    """
    if find_spec("transformers") is None:
        raise ValueError(f"{folder} is a model of transformers, which is not installed: pip install 'mull[hf]'")
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: Any = {"local_files_only": True, "trust_remote_code": False}
    try:
        writer = AutoModelForCausalLM.from_pretrained(str(folder), use_safetensors=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
    except (*MISTAKES, SafetensorError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(
            f"{folder} cannot be opened by transformers, with weights as safetensors: {said}; save it anew with "
            "save_pretrained"
        ) from error
    return HuggingFaceSolver(writer.eval().to(device, dtype), tokenizer, marks, batch_size=batch_size)


def marks_asked(given: str | None) -> dict[str, str] | None:
    """The marks that models get which are not mull's, of a file or by the word for mull's own; None for the usual."""
    if given is None:
        return None
    return dict(vars(Marks())) if given == OURS else read_marks(given)


def read_marks(path: str | Path) -> dict[str, str]:
    """The marks of a JSON file, {"wait": "Hmm", ...}. Raises ValueError for a file that holds something else."""
    place = Path(path).expanduser()
    try:
        found = json.loads(read_bytes(place, MAX_JSON))
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
        marks_with(found)
    except FileNotFoundError:
        raise ValueError(f"there is no file {place} of marks") from None
    except (ValueError, RecursionError) as error:
        raise damaged(place, f"names no marks: {error}", 'write {"wait": "Hmm", "step": "\\n"}') from None
    return found
