"""What every family does around its layers: embed tokens, place them, read answers out, and start the weights.

    x = sqrt(D) E[tokens];   logits = E . norm(h)   (or an untied head)
    value = w . norm(h) + b                         where there is a process reward

Every family's `forward` takes

    input_ids       (B, T) int64
    attention_mask  (B, T), 0 at padding, on either side: positions do not count it, and outputs there are meaningless
    cache           keys and values of earlier tokens; a cached call keeps no gradients

Shapes: B batch, T positions of this call, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mull.models.arguments import as_ids, as_valid, is_precise, outside
from mull.models.cache import Cache, Policy
from mull.models.compiling import TrainingBlocks, compiled_for_decoding
from mull.models.config import ModelConfig
from mull.models.layers import Join, RMSNorm, rotation_angles, through
from mull.models.loop import Iterations, check_count, check_counts, check_iterations
from mull.models.output import ModelOutput, Reading
from mull.models.placing import Sight, place
from mull.models.positions import Context
from mull.models.registry import Registry
from mull.models.roles import Role, parameter_roles

FAMILIES: Registry[type[LanguageModel]] = Registry("model_type")  # by the model_type of the configuration


def family(model_class: type[LanguageModel]) -> type[LanguageModel]:
    """A decorator that registers a family: saving, loading, the command line and the tests know it from then on."""
    word = getattr(model_class.config_class, "model_type", None)
    if word is None:
        raise ValueError(f"{model_class.__name__}: set config_class to a configuration that has a model_type")
    return FAMILIES.register(word)(model_class)


class LanguageModel(nn.Module):
    """Embedding, final norm and head; the families add the layers between and `forward`.

    Attributes:
        config_class: the family's configuration, whose `model_type` names the family.
    """

    config_class: ClassVar[type[ModelConfig]] = ModelConfig
    tokenizer: Any = None  # of the checkpoint folder, where it has one: `mull.load` puts it here
    roles: ClassVar[dict[str, Role]] = {"head.weight": "table", "value_head.weight": "table"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        self.compiled: Callable[..., Tensor] | None = None  # see `compile_decoding`
        self.compiled_training: TrainingBlocks | None = None  # see `compile_training`
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.value_head = nn.Linear(config.d_model, 1) if config.value_head else None

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    def __call__(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """`forward` of token ids (B, T): integers of any type, as a tensor, as an array or as lists."""
        mask = kwargs.get("attention_mask")
        if mask is not None and not isinstance(mask, Tensor):
            kwargs["attention_mask"] = as_valid(mask).to(self.device)
        return super().__call__(as_ids(input_ids, self.device), *args, **kwargs)

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, D)."""
        try:
            return math.sqrt(self.config.d_model) * self.embedding(input_ids)
        except IndexError:  # torch has looked already, and names no id
            raise ValueError(outside(input_ids, self.config.vocab_size)) from None

    def logits(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        if self.head is not None:
            return self.head(self.final_norm(x))
        return F.linear(self.final_norm(x), self.table())

    def value(self, x: Tensor) -> Tensor | None:
        """(B, T, D) -> (B, T), the process reward before its sigmoid; None for a model without one."""
        return None if self.value_head is None else self.value_head(self.final_norm(x)).squeeze(-1)

    def value_parameters(self) -> list[nn.Parameter]:
        """The parameters of the process reward; none without one."""
        return [] if self.value_head is None else list(self.value_head.parameters())

    def table(self) -> Tensor:
        """E, (V, D). Of what stands in the embedding's place and is more than a table (an adapter, say): what it makes
        of every token, so that the head that is tied to it changes with it."""
        if type(self.embedding) is nn.Embedding:
            return self.embedding.weight
        return self.embedding(torch.arange(self.config.vocab_size, device=self.device))

    def sweep(self, input_ids: Tensor, counts: Sequence[int | None]) -> Iterator[tuple[int | None, Reading]]:
        """The answers at ascending iteration counts, as they come out of one unroll; (None, answer) without a loop."""
        raise NotImplementedError

    def calibrate(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        """Set what inference needs to know of held-out text (B, T); nothing in a family without routed passes."""

    def executed_flops_per_token(self, output: ModelOutput, length: int | None = None) -> float:
        """Forward FLOPs per token of the call that gave this output: with the iterations that its positions used, and
        the answers that an exit rule read out on the way. Behind a cache, `length` is that of what it holds now. A
        family that writes this anew writes `executed_flops` anew, too."""
        one_by_one = length is not None and output.iterations.shape[1] == 1
        length = output.iterations.shape[1] if length is None else length
        used = output.iterations.double().mean().item()
        looks = 0.0 if output.looks is None else output.looks.double().mean().item()
        flops = self.config.flops_per_token(used, length, one_by_one=one_by_one)
        return flops + looks * self.config.reading().flops(length, self.config.seen(one_by_one))

    def executed_flops(
        self, output: ModelOutput, lengths: Sequence[int], new: Sequence[int] | None = None
    ) -> list[float]:
        """Forward FLOPs of each row of the call behind a cache that gave this output, of all its new tokens together.
        `lengths` are those of what the cache holds now; `new` says how many tokens of each row, the last ones, are no
        padding: None means all."""
        config, width = self.config, output.iterations.shape[1]
        spent, looks = output.iterations.tolist(), None if output.looks is None else output.looks.tolist()
        found = []
        for row, length in enumerate(lengths):
            own = width if new is None else new[row]
            flops = own * config.flops_per_token(sum(spent[row][-own:]) / own, length, one_by_one=width == 1)
            if looks is not None:
                flops += sum(looks[row][-own:]) * config.reading().flops(length, config.seen(width == 1))
            found.append(flops)
        return found

    def check_depth(self, iterations: Iterations | None, batch_size: int = 1) -> Any:
        """The `Iterations` of a call on so many rows, the config's for None; None where the model has no loop. Raises
        ValueError for a count below 1, counts of another shape than (B,), and any count where there is no loop."""
        default = self.config.default_iterations
        if default is None and iterations is not None:
            raise ValueError(f"a {type(self).__name__} has no loop: iterations={iterations} is refused, leave it out")
        count = default if iterations is None else check_iterations(iterations, batch_size)
        return count.to(self.device) if isinstance(count, Tensor) else count

    # Layers and cache -------------------------------------------------------------------------------------------------

    def through(
        self,
        layers: nn.ModuleList,
        x: Tensor,
        context: Context,
        first: int,
        iteration: int = 0,
        join: Join | None = None,
    ) -> Tensor:
        """See `layers.through`; compiled where `compile_training` or `compile_decoding` asked for it."""
        if self.compiled_training is not None and self.training and context.cache is None and len(layers):
            return self.compiled_training.run(layers, x, context, first, join)
        if self.compiled is not None and not torch.is_grad_enabled():
            least = max(2, self.config.reach, self.config.window)
            block = context.one_token_block(first, len(layers), iteration, least)
            if block is not None:
                return self.compiled(layers, x, block, 0, 0, join)
        return through(layers, x, context, first, iteration, join)

    def compile_decoding(self) -> None:
        """Compile the blocks of layers (torch.compile) for calls of one token a row behind a cache.

        Each block is compiled once, when it is first met, for all iteration counts and lengths, and once more for
        batches: some ten seconds each, less in later processes. Results agree to rounding. Needs a C++ compiler. What
        is put in a module's place later, an adapter for example, is not seen: compile last.
        """
        self.compiled = compiled_for_decoding(self.device)

    def compile_training(self) -> None:
        """Compile the blocks of layers (torch.compile) for calls without a cache of a model in training mode.

        Each block is compiled when it is first met, for all iteration counts and gradient windows: once with gradient,
        and once without where iterations before a window have none. Half a minute each; another shape of the batch
        compiles once more, then for all shapes. Results agree to rounding. Eval mode stays as it is. Needs a C++
        compiler.
        """
        self.compiled_training = TrainingBlocks()

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles have of the model: everything but compiled code, which no other model may share. A
        copy says the same, uncompiled, until `compile_decoding` or `compile_training` is called on it."""
        return {**self.__dict__, "compiled": None, "compiled_training": None}

    def new_cache(
        self, batch_size: int, max_length: int, policy: Policy = "full", ring: int = 1, dtype: torch.dtype | None = None
    ) -> Cache:
        """An empty cache for `batch_size` sequences of up to `max_length` tokens; policies: see models/cache.py.

        With a dtype narrower than the model's (bfloat16) keys and values are rounded to it, and attention computes in
        it: half the bytes to keep and to read, and answers that differ in the third digit.

        Raises:
            ValueError: a size that is no integer of at least 1, more positions than the model's limit, or an option of
                the cache that there is not.
        """
        self.check_order()
        batch_size, max_length = check_count("batch_size", batch_size), check_count("max_length", max_length)
        if max_length > self.config.max_length:
            raise ValueError(
                f"max_length {max_length} is more than the model's limit of {self.config.max_length} positions"
            )
        if dtype is not None and not is_precise(dtype):
            raise ValueError(f"a cache keeps floating-point numbers of 16 bits or more, as torch.bfloat16, not {dtype}")
        c = self.config
        return Cache(batch_size, c.kv_heads, max_length, c.head_dim, self.device, dtype or self.dtype, policy, ring)

    def context(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        iterations: Iterations | None = None,
    ) -> Context:
        """Place the tokens of a call of this depth: their positions, and which keys each sees. Raises ValueError for
        ids, mask or cache of the wrong shape, a cache of another depth, and more positions than the model's limit."""
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(f"input_ids must have shape (batch, positions >= 1), not {tuple(input_ids.shape)}")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}"
            )
        if cache is not None:
            self.check_order()
        if cache is not None and cache.batch_size != len(input_ids):
            raise ValueError(f"the cache holds {cache.batch_size} sequences, input_ids has {len(input_ids)}")
        valid = None if attention_mask is None else as_valid(attention_mask)
        shape, c = (len(input_ids), input_ids.shape[1]), self.config
        sight = Sight(c.window or None, c.reach, c.causal, c.board)
        context = place(shape, input_ids.device, valid, cache, self.rotation, sight)
        end = context.end
        if end > self.config.max_length and cache is None and valid is not None:  # padding has no position
            end = int(valid.sum(dim=1).max())
        if end > self.config.max_length:
            raise ValueError(
                f"{end} positions are more than the model's limit of {self.config.max_length}; "
                "shorten the input, or train with a larger max_length"
            )
        if cache is not None:
            assert context.counts is not None
            cache.admit(context.counts, iterations)
        return context

    def check_order(self) -> None:
        """Raise a ValueError unless order is causal: else later tokens would change the keys that a cache holds."""
        if not self.config.causal:
            raise ValueError(
                f"this {type(self).__name__} has causal: false, so it keeps no cache and writes no text: give it whole "
                "rows, as mull evaluate does, or train with causal: true"
            )

    def rotation(self, positions: Tensor) -> Tensor | None:
        """cos and sin by position, (...,), as a `Context` has them; by row and column, (..., 2), on a board, where the
        first half of a head's pairs turns with the row. None for a model without positions."""
        c = self.config
        if c.positions != "rotary":
            return None
        table_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        if not c.board:
            return rotation_angles(positions, c.head_dim, c.rope_base, table_dtype)
        pairs = c.head_dim // 2
        widths = [2 * (pairs - pairs // 2), 2 * (pairs // 2)]
        halves = [
            rotation_angles(positions[..., axis], width, c.rope_base, table_dtype) for axis, width in enumerate(widths)
        ]
        return torch.cat(halves, dim=-2)


def check_read_at(
    read_at: Iterable[Any], iterations: Iterations, cache: Cache | None = None, why_not: str = ""
) -> tuple[int, ...]:
    """The counts as ints. Raises ValueError unless answers can be read out on the way at all of them; `why_not` with a
    cache."""
    counts = check_counts("read_at", read_at)
    if counts and cache is not None:
        raise ValueError(f"read_at cannot be used with a cache: {why_not}")
    if counts and isinstance(iterations, Tensor):
        raise ValueError("read_at needs one iteration count for all rows, not one per row")
    beyond = [count for count in counts if count > iterations]
    if beyond:
        raise ValueError(f"read_at {beyond} lies outside 1 .. iterations={iterations}")
    return counts


def initialize(model: LanguageModel) -> None:
    """Start the weights, scaled by effective depth (Takase et al., arXiv 2312.16903; Huginn, section 4.2).

    Truncated normals (cut at 3 standard deviations): std sqrt(2 / 5D) for every matrix and table, divided by sqrt(2 L)
    for the matrices that write to the residual stream, L the layers executed at the trained depth. Norms start at 1,
    biases at 0; other vectors keep the start that their module gives them (models/roles.py).
    """
    std = math.sqrt(2 / (5 * model.config.d_model))
    std_output = std / math.sqrt(2 * model.config.effective_depth)
    for _, parameter, role in parameter_roles(model):
        if role != "vector":
            own_std = std_output if role == "output" else std
            nn.init.trunc_normal_(parameter, std=own_std, a=-3 * own_std, b=3 * own_std)
    if model.value_head is not None:
        nn.init.zeros_(model.value_head.bias)
