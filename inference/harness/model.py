"""The model of lm-evaluation-harness that runs mull's folders: `--model mull`, with the iteration count as an argument.

    lm-eval run --model mull --model_args pretrained=FOLDER,iterations=16,exit=latent:0.03 ...
    lm = MullLM("parity", iterations=16, also=[1, 4]);  simple_evaluate(model=lm.at(4), tasks=...)

Depth reaches all three kinds of requests. Log-likelihoods at the counts `also` are read out of the unroll of the first
that is asked for, and kept: `at` is the same model at another of these counts, which answers from what is kept. Under
an exit rule each count is a run of its own. Answers that are written are a run of each count anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, get_args

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from mull.checkpoints import load, load_tokenizer
from mull.inference.arguments import Dtype, at_least, shares
from mull.inference.console import dtype_of
from mull.inference.early_exit import choose_exit
from mull.inference.harness.encoding import Encoder
from mull.inference.harness.scoring import Score, Scorer
from mull.inference.harness.writing import write
from mull.models import LanguageModel
from mull.models.config import Capacity

Kept = dict[tuple[str, ...], dict[int | None, Any]]  # answers by the texts of a request and the count


@register_model("mull")
class MullLM(LM):
    """A checkpoint folder of mull as a model of the harness. See the head of this file.

    Args:
        pretrained: a checkpoint folder or the name of one; in Python also a model that has its tokenizer.
        iterations: of every position, or the most under an exit rule; None is the config's count.
        exit: a rule that ends thinking early, `latent:0.03`.
        capacity: share of the tokens that routed passes take; None is the config's.
        batch_size: rows at once.
        device, dtype: as of `mull.load`; the dtype as a word, `bfloat16`, or `same` for what is stored.
        seed: of answers that are drawn (do_sample).
        also: other counts at which log-likelihoods are read out of the same unroll; see `at`.
        max_batch_size: what the harness hands over for batches that it sizes itself, which here it does not.

    Raises:
        FileNotFoundError, ValueError: a folder without a model or a tokenizer, a model that is not causal, or an
            argument that it cannot follow.
    """

    def __init__(
        self,
        pretrained: str | Path | LanguageModel,
        iterations: int | None = None,
        exit: str | None = None,
        capacity: Capacity | None = None,
        batch_size: int | str = 16,
        device: str = "cpu",
        dtype: Dtype = "same",
        seed: int = 0,
        also: Sequence[int] = (),
        max_batch_size: int | None = None,  # noqa: ARG002 (the harness's own command always names it)
    ) -> None:
        super().__init__()
        if dtype not in get_args(Dtype):
            raise ValueError(f"dtype {dtype!r} is none of {', '.join(get_args(Dtype))}")
        given = isinstance(pretrained, LanguageModel)
        self.model = pretrained if isinstance(pretrained, LanguageModel) else load(pretrained, device, dtype_of(dtype))
        if self.model.tokenizer is None:
            if given:
                raise ValueError("the model has no tokenizer: set model.tokenizer")
            self.model.tokenizer = load_tokenizer(str(pretrained))  # says what is missing
        self.model.check_order()
        self.iterations: int | None = self.model.check_depth(iterations)
        counts = sorted({self.model.check_depth(count) for count in (*also, self.iterations)})
        self.scorer = Scorer(
            self.model,
            counts,
            rows_at_once(batch_size),
            choose_exit(self.model, exit),
            capacity if capacity is None or isinstance(capacity, Sequence) else shares(capacity),
        )
        self.encoder = Encoder(self.model)
        self.seed, self.kept = seed, Kept()
        self.said: dict[str, Any] = {"pretrained": type(self.model).__name__ if given else str(pretrained)}
        self.said |= {"exit": exit, "capacity": capacity, "dtype": None if dtype == "same" else dtype}

    def at(self, iterations: int | None) -> MullLM:
        """The same model at another of its counts: what is kept of one answers for the other.

        Raises ValueError for a count that was not given as `iterations` or among `also`.
        """
        if iterations not in self.scorer.counts:
            raise ValueError(f"iterations={iterations} is none of {self.scorer.counts}: name it in also")
        other = copy(self)
        other.iterations = iterations
        return other

    @property
    def max_length(self) -> int:
        return self.model.config.max_length

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a document, if there is one."""
        return next(iter(self.encoder.end), None)

    @property
    def tokenizer_name(self) -> str:
        """What the harness asks for where it is to apply a chat template. Raises ValueError: there is none."""
        raise ValueError("chat templates are refused: mull's folders have none; leave apply_chat_template out")

    @property
    def mean_iterations(self) -> float | None:
        """Iterations of a position on average under an exit rule, so far; None without one."""
        return self.scorer.spent[self.iterations].mean

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: ARG002
        """How likely each continuation is behind its context, and whether greedy decoding would write it."""
        return self.known([request.args for request in requests], self.pairs)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """How likely each whole text is, every token scored once."""
        return self.known([request.args for request in requests], self.wholes)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """The text written behind each context, up to the first of its stop strings."""
        asked = [(request.args[0], dict(normalize_gen_kwargs(request.args[1]))) for request in requests]
        return write(self.scorer, self.iterations, self.encoder, asked, self.seed)

    def known(self, asked: Sequence[tuple[str, ...]], compute: Callable[..., dict[int | None, list[Any]]]) -> list[Any]:
        """The answers to requests at this count. What is not kept yet is computed, for all counts at once."""
        new = [texts for texts in dict.fromkeys(asked) if texts not in self.kept]
        if new:
            by_count = compute(new)
            self.kept |= {
                texts: {count: found[number] for count, found in by_count.items()} for number, texts in enumerate(new)
            }
        return [self.kept[texts][self.iterations] for texts in asked]

    def pairs(self, asked: Sequence[tuple[str, str]]) -> dict[int | None, list[Any]]:
        pairs = self.encoder.cut([self.encoder.pair(*texts) for texts in asked])
        return {count: [tuple(score) for score in scores] for count, scores in self.scorer.score(pairs).items()}

    def wholes(self, asked: Sequence[tuple[str]]) -> dict[int | None, list[Any]]:
        windows = [self.encoder.windows(text) for (text,) in asked]
        scored = self.scorer.score([pair for own in windows for pair in own])
        return {count: sums(scores, [len(own) for own in windows]) for count, scores in scored.items()}

    def get_model_info(self) -> dict[str, Any]:
        """What results say of the model; `model_args` are those of a command line that would give them."""
        args = {"pretrained": self.said["pretrained"], "iterations": self.iterations, **self.said}
        return {
            "model": "mull",
            "model_args": ",".join(f"{name}={value}" for name, value in args.items() if value is not None),
            "model_num_parameters": self.model.config.parameters,
            "model_dtype": str(self.model.dtype),
            "mean_iterations": self.mean_iterations,
        }


def rows_at_once(batch_size: int | str) -> int:
    """The batch size, as a number or the text of one; raises ValueError for another, such as auto."""
    try:
        return at_least(1)(batch_size)
    except ValueError as error:
        raise ValueError(f"batch_size: {error}") from None


def sums(scores: Sequence[Score], lengths: Sequence[int]) -> list[float]:
    """The log-likelihoods of consecutive scores, added up by so many of them."""
    found, start = [], 0
    for length in lengths:
        found.append(sum(score.loglikelihood for score in scores[start : start + length]))
        start += length
    return found
