"""What is shown of the first row of a trace: tensors by name, tokens as text, one dictionary for page and JSON alike.

Shapes: T positions, C counts that are shown (those at which answers were read), K tokens of an answer, N thinking
layers, R iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mull.inference.text import UNDECIDED
from mull.inference.tracing.principal import Plane, plane_of
from mull.inference.tracing.trace import Trace
from mull.models import LanguageModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def view(name: str, trace: Trace, model: LanguageModel, plane: Plane | None = None) -> dict[str, Any]:
    """The first row as a dictionary: text, numbers, and tensors on the CPU.

    `counts` are the iterations that are shown, (C,); the tensors of `motion` and `answers` begin with C, then T. `path`
    is there where the trace kept its states and a plane is given.
    """
    at = torch.tensor([count - 1 for count in trace.read_at], device=trace.residual.device)
    shown: dict[str, Any] = {
        "name": name,
        "iterations": trace.iterations,
        "counts": list(trace.read_at),
        "tokens": trace.input_ids[0].tolist(),
        "labels": trace.labels[0].tolist(),
        "settled": trace.settled[0].tolist(),
        "exits": {word: left[0].tolist() for word, left in trace.exits.items()},
        "motion": {"residual": trace.residual[0, at].cpu(), "cosine": trace.cosine[0, at].cpu()},
        "answers": {
            lens: {field: value[0].cpu() for field, value in vars(found).items()}
            for lens, found in trace.answers.items()
        },
    }
    if trace.selected is not None and trace.selected.shape[-1]:
        shown["routers"] = {
            "layers": list(model.config.routed_layers),
            "selected": trace.selected[0].cpu(),  # (T, N, R - 1)
            "logits": None if trace.router_logits is None else trace.router_logits[0].cpu(),
        }
    if plane is not None and trace.states is not None:
        path = plane.project(trace.states[0, at])
        shown["path"] = {"points": path.cpu(), "shares": list(plane.shares)}
    return shown


def common_plane(traces: Sequence[Trace]) -> Plane | None:
    """One plane for the first rows of all traces, so that their paths can be laid over each other."""
    kept = [trace.states[0].flatten(0, 1) for trace in traces if trace.states is not None]
    return plane_of(torch.cat(kept)) if kept else None


def texts(tokenizer: Tokenizer | None, ids: set[int]) -> dict[int, str]:
    """What tokens look like. Bytes that are no character alone, and ids without text, have names."""
    return {token: text_of(tokenizer, token) for token in sorted(ids)}


def text_of(tokenizer: Tokenizer | None, token: int) -> str:
    """A token as text: what it decodes to, its name where that is no whole character, its number as `#7` without
    either."""
    if tokenizer is None:
        return f"#{token}"
    text = tokenizer.decode([token], skip_special_tokens=False)
    if not text or UNDECIDED in text:
        text = tokenizer.id_to_token(token) or f"#{token}"
    return text


def tokens_in(shown: dict[str, Any]) -> set[int]:
    """Every token that a view names."""
    found = {*shown["tokens"], *(label for label in shown["labels"] if label >= 0)}
    for answers in shown["answers"].values():
        found.update(answers["tokens"].unique().tolist())
    return found


def plain(shown: Any, digits: int = 6) -> Any:
    """The same in lists and numbers, as JSON has them: NaN and infinity are null, others have so many digits."""
    if isinstance(shown, dict):
        return {name: plain(value, digits) for name, value in shown.items()}
    if isinstance(shown, Tensor):
        return plain(shown.tolist(), digits)
    if isinstance(shown, list):
        return [plain(value, digits) for value in shown]
    if isinstance(shown, float):
        return float(f"{shown:.{digits}g}") if abs(shown) < float("inf") else None
    return shown
