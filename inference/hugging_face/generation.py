"""generate of transformers over a mull model: depth is an argument, the cache is mull's, rows end where mull's do.

    model.generate(**inputs, iterations=8)                     an argument of the call, or else
    model.generate(**inputs, generation_config=GenerationConfig(iterations=8))    a field of its configuration, or else
    model.generation_config.iterations = 8                     a field of the model's, or else the mean of training

and so for `exit` and `capacity`. Sampling, beams, streamers and stopping rules are transformers' own.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    StoppingCriteria,
    StoppingCriteriaList,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from mull.inference.checks import check_prompt, routing_options
from mull.inference.early_exit import choose_exit
from mull.inference.hugging_face.cache import MullCache, check_cache
from mull.inference.hugging_face.tokenizer import padding_token
from mull.inference.mode import in_eval
from mull.models import LanguageModel

DEPTH = ("iterations", "exit", "capacity")  # what may be said of how long to think


class Full(StoppingCriteria):
    """A row ends at the model's max_length, padding not counted, as it does in mull.generate.

    Args:
        behind: (B,), tokens that a row holds beyond the columns of input_ids; negative where these are padding.
        limit: most tokens of a row.
    """

    def __init__(self, behind: Tensor, limit: int) -> None:
        self.behind, self.limit = behind, limit

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        rows = self.behind.to(input_ids.device).repeat_interleave(len(input_ids) // len(self.behind))  # beams of a row
        return input_ids.shape[1] + rows >= self.limit


class MullGeneration(GenerationMixin):
    """What `generate` does otherwise than for other models."""

    mull: LanguageModel

    def own_generation_config(self) -> GenerationConfig:
        """What the folder says of writing: its stop tokens, and a token to fill up with."""
        stops = list(self.mull.config.stop_tokens)
        return GenerationConfig(
            eos_token_id=stops or None, pad_token_id=padding_token(self.mull.tokenizer, self.mull.config.stop_tokens)
        )

    def generate(self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' generate, in eval mode, with `iterations`, `exit` and `capacity` beside its own arguments.

        Prompts of different lengths are padded on the left, and attention_mask alone says where; without one nothing is
        padding, whatever the tokens are.

        Raises:
            ValueError: as mull.generate: a bad value, an empty prompt, one that leaves no room; padding on the right.
        """
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError("inputs_embeds is refused: a mull model reads token ids; give input_ids")
        self.mull.check_order()
        if "past_key_values" in kwargs:  # its name before
            kwargs["cache"] = kwargs.pop("past_key_values")
        check_cache(kwargs.get("cache"))
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if ids is not None and kwargs.get("cache") is None:
            kwargs["attention_mask"] = self.checked_mask(ids, kwargs.get("attention_mask"))
        if ids is not None and kwargs.get("attention_mask") is not None:
            behind = kwargs["attention_mask"].sum(dim=1) - ids.shape[1]
            given = kwargs.pop("stopping_criteria", None) or []
            kwargs["stopping_criteria"] = StoppingCriteriaList([*given, Full(behind, self.mull.config.max_length)])
        with in_eval(self.mull), in_eval(self):  # a module, when it is mixed into one
            return super().generate(ids, generation_config, *args, **kwargs)

    def checked_mask(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The mask of prompts (B, P), all ones where none is given."""
        check_prompt(self.mull, ids, attention_mask)
        if attention_mask is None:
            return torch.ones_like(ids)
        if not bool((attention_mask[:, -1] == 1).all()):
            raise ValueError("the prompts are padded on the right; generate needs padding_side='left'")
        return attention_mask

    def _prepare_generation_config(self, generation_config: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """transformers', and then the depth: of the call, of the given configuration, of the model's own."""
        said = {name: kwargs.pop(name, None) for name in DEPTH}
        own: Any = super()  # whose methods ask for a model of transformers, which this is mixed into
        config, others = own._prepare_generation_config(generation_config, *args, **kwargs)
        for name in DEPTH:
            value = getattr(config, name, None) if said[name] is None else said[name]
            if value is not None:
                others[name] = value
        if config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation {config.cache_implementation!r} is refused: mull's cache is its own"
            )
        if config.assistant_early_exit is not None:
            raise ValueError(
                f"assistant_early_exit={config.assistant_early_exit} is refused: a loop has no layers to stop at; give "
                "the folder, opened again, as assistant_model, with generation_config.iterations = 1"
            )
        if not isinstance(others.get("iterations"), Tensor) or others["iterations"].dim() == 0:
            depth = self.mull.check_depth(others.get("iterations"))
            others |= {} if others.get("iterations") is None else {"iterations": depth}
        choose_exit(self.mull, others.get("exit"))
        routing_options(self.mull, capacity=others.get("capacity"))
        return config, others

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        if model_kwargs.get("cache") is None and generation_config.use_cache is not False:
            model_kwargs["cache"] = MullCache()
        else:
            own: Any = super()
            own._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        mask, limit = model_kwargs.get("attention_mask"), self.mull.config.max_length
        if mask is not None:  # where the last row is full: drafts must not go beyond it
            limit += int((mask == 0).sum(dim=1).max())
        generation_config.max_length = min(generation_config.max_length, limit)

    def _get_candidate_generator(
        self, generation_config: Any, *args: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> Any:
        """transformers', where an assistant thinks as long as its own configuration says, and not as long as this model
        is asked to: it may be shallower, or have no depth at all."""
        generation_config = deepcopy(generation_config)
        for name in DEPTH:
            if hasattr(generation_config, name):
                delattr(generation_config, name)
        model_kwargs = {name: value for name, value in model_kwargs.items() if name not in DEPTH}
        own: Any = super()
        return own._get_candidate_generator(generation_config, *args, model_kwargs=model_kwargs, **kwargs)

    def _get_logits_processor(self, *args: Any, model_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """transformers', where guidance_scale, which has the model read a second prompt, has it read at the depth of
        the call."""
        model: Any = self
        own: Any = super()
        found = own._get_logits_processor(*args, model_kwargs=model_kwargs, **kwargs)
        depth = {name: value for name, value in (model_kwargs or {}).items() if name in DEPTH}
        for each in found:
            if isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                each.model = partial(model, **depth)
        return found

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: batches that requests enter and leave need the cache of transformers."""
        del args, kwargs
        raise ValueError("generate_batch is refused: mull's cache is its own; use generate, or mull serve")

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, cache: Any = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """transformers', where rows that are full, and have ended, ask for no more room while the others go on: behind
        a cache what they are filled up with is hidden, and without one the columns that only they still fill are left
        out."""
        kwargs |= {"cache": cache, "attention_mask": attention_mask}
        kwargs.pop("tokenizer", None)  # of stop_strings, which transformers hands over with the model's arguments
        prepared = super().prepare_inputs_for_generation(input_ids, **kwargs)
        new, limit = prepared["input_ids"], self.mull.config.max_length
        if cache is None and new.shape[1] > limit:
            prepared["input_ids"] = new[:, -limit:]
            if attention_mask is not None:
                prepared["attention_mask"] = prepared["attention_mask"][:, -limit:]
        elif cache is not None and cache.held is not None and cache.held.length + new.shape[1] > limit:
            mask = torch.ones_like(new) if attention_mask is None else attention_mask[:, -new.shape[1] :].to(new.device)
            room = torch.tensor([[limit - length] for length in cache.held.lengths], device=new.device)
            prepared["attention_mask"] = mask * (mask.cumsum(dim=1) <= room)
        return prepared
