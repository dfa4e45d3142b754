"""A mull model as transformers knows models: forward with its arguments and outputs, over the same weights.

    model = AutoModelForCausalLM.from_pretrained("checkpoints/text")
    model(ids, iterations=8).logits                            model(ids, labels=ids, backprop_iterations=4).loss

`model.mull` is the model that mull.load gives. The two are two faces of one body: they share their modules, so a tensor
has the same name in both, what a trainer or an adapter changes in one is changed in the other, and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mull.inference.checks import routing_options
from mull.inference.early_exit import choose_exit, think_until
from mull.inference.exits import Exit
from mull.inference.hugging_face.cache import MullCache, check_cache
from mull.inference.hugging_face.configuration import MullConfig
from mull.inference.hugging_face.generation import MullGeneration
from mull.inference.hugging_face.saving import open_folder, save_folder
from mull.models import IteratedModel, LanguageModel, ModelOutput
from mull.models.config import Capacity
from mull.models.loop import Iterations, check_count

REFUSED = {
    "inputs_embeds": "a mull model reads token ids; give input_ids",
    "position_ids": "positions are counted from attention_mask, 0 at padding; leave them out",
    "output_attentions": "attention is computed without its weights; leave it out",
}


@dataclass
class MullOutput(CausalLMOutputWithPast):
    """What forward returns.

    Attributes:
        loss: mean cross entropy of the next tokens in nats, where labels were given.
        logits: (B, T, V), or the last ones of each row (`logits_to_keep`).
        cache: a MullCache, with use_cache.
        hidden_states: with output_hidden_states one tensor, (B, T, D): the state after the last iteration (of the last
            layer, in a family without a loop), before the coda and the final norm. A loop has no list of layers.
        iterations: (B, T) int64, iterations that each position used.
    """

    iterations: Tensor | None = None


class MullForCausalLM(MullGeneration, PreTrainedModel):
    """See the head of this file; one subclass a family."""

    config_class: type[MullConfig]
    config: MullConfig
    mull: LanguageModel
    main_input_name = "input_ids"
    base_model_prefix = ""
    _supports_sdpa = True
    _tied_weights_keys: dict[str, str] = {}  # noqa: RUF012  # a tied head is no tensor of its own
    accepts_loss_kwargs = True  # num_items_in_batch: the mean is over all batches of a step

    def __init__(self, config: MullConfig, *, network: LanguageModel | None = None) -> None:
        """config: of the model. network: the model with its weights; None makes one with weights as training starts."""
        super().__init__(config)
        if config._attn_implementation != "sdpa":
            raise ValueError(f"attn_implementation {config._attn_implementation!r} is refused: mull's layers use sdpa")
        body = config.family(config.architecture()) if network is None else network
        self.__dict__["mull"] = body  # no module of this one: it is this one
        for shared in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[shared] = body.__dict__[shared]
        self.generation_config = self.own_generation_config()
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: MullCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        iterations: Iterations | None = None,
        exit: str | Exit | None = None,
        capacity: Capacity | None = None,
        backprop_iterations: int | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> MullOutput | tuple[Any, ...]:
        """One call of the model.

        Args:
            input_ids: (B, T); behind a cache the new tokens only.
            attention_mask: (B, T), 0 at padding on either side, or (B, columns of the cache + T).
            cache: of the call before; None with use_cache makes one. A cached call keeps no gradients.
            labels: (B, T), the tokens themselves, -100 where none is scored; forward shifts them.
            use_cache: whether the output has a cache; by default, where one is given.
            logits_to_keep: logits of the last so many positions only; 0 for all.
            iterations: how long to think, one count or one a row, (B,); None is the config's mean.
            exit: rule that ends thinking early, such as latent:0.03; in eval mode only.
            capacity: share of the tokens that a routed pass takes (inner thinking).
            backprop_iterations: gradient through the last so many iterations; None is the config's, which is all.
            output_hidden_states, return_dict: see `MullOutput`; without return_dict a tuple of what is there.
            others: num_items_in_batch, by which a trainer divides the summed loss; nothing else.

        Raises:
            ValueError: a value that mull refuses, or an argument that it cannot honour.
        """
        cache = others.pop("past_key_values", None) if cache is None else cache  # its name before
        scale = others.pop("num_items_in_batch", None)
        self.refuse(others, labels, cache, bool(use_cache))
        if input_ids is None:
            raise ValueError("a mull model reads token ids; give input_ids")
        if cache is None and use_cache:
            cache = MullCache()
        mask = within_call(attention_mask, input_ids, 0 if cache is None else cache.seen)
        self.mull.training = self.training
        out = self.think(input_ids, mask, cache, iterations, exit, capacity, backprop_iterations)
        loss = None if labels is None else self.loss_of(out, labels, scale)
        kept: Any = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        result = MullOutput(
            loss=loss,
            logits=out.logits[:, kept],
            cache=cache,
            hidden_states=(out.state,) if states else None,
            iterations=out.iterations,
        )
        named = self.config.return_dict if return_dict is None else return_dict
        return result if named else result.to_tuple()

    def think(
        self,
        input_ids: Tensor,
        mask: Tensor | None,
        cache: MullCache | None,
        iterations: Iterations | None,
        exit: str | Exit | None,
        capacity: Capacity | None,
        backprop_iterations: int | None,
    ) -> ModelOutput:
        """What mull's model says; the cache has advanced by this call."""
        rule = choose_exit(self.mull, exit)
        options: dict[str, Any] = routing_options(self.mull, capacity=capacity)
        held = None
        if cache is not None:
            held = cache.open(self.mull, len(input_ids), "full" if rule is None else "deepest")
        if rule is not None:
            if self.training:
                raise ValueError(f"exit {rule.name!r} ends thinking at inference; call model.eval() first")
            if backprop_iterations is not None:
                raise ValueError(
                    f"backprop_iterations={backprop_iterations} is refused: an exit keeps no gradients; leave it out"
                )
            out = think_until(self.mull, input_ids, iterations, rule, mask, held)
        else:
            out = self.mull(
                input_ids, iterations, attention_mask=mask, cache=held, **options, **self.window(backprop_iterations)
            )
        if cache is not None:
            cache.seen += input_ids.shape[1]
        return out

    def window(self, backprop_iterations: int | None) -> dict[str, int]:
        """The gradient window of a call, for the families that have one."""
        loops = isinstance(self.mull, IteratedModel)
        if backprop_iterations is not None and not loops:
            raise ValueError(
                f"backprop_iterations={backprop_iterations} needs a model with a core that is iterated, not a "
                f"{type(self.mull).__name__}; leave it out"
            )
        asked = self.config.backprop_iterations if backprop_iterations is None else backprop_iterations
        return {} if asked is None or not loops else {"backprop_iterations": check_count("backprop_iterations", asked)}

    def loss_of(self, out: ModelOutput, labels: Tensor, num_items_in_batch: Any) -> Tensor:
        """The loss of transformers' causal models, and in training the routers' own beside it."""
        if labels.shape != out.logits.shape[:2]:
            raise ValueError(f"labels have shape {tuple(labels.shape)}, input_ids {tuple(out.logits.shape[:2])}")
        loss = self.loss_function(
            logits=out.logits,
            labels=labels,
            vocab_size=self.config.vocab_size,
            num_items_in_batch=num_items_in_batch,
        )
        if out.auxiliary_loss is not None:
            loss = loss + self.config.auxiliary_weight * out.auxiliary_loss
        return loss

    def refuse(self, others: dict[str, Any], labels: Tensor | None, cache: Any, use_cache: bool) -> None:
        """Raise a ValueError for what would be accepted and not followed."""
        for name, value in others.items():
            if value is not None and value is not False:
                why = REFUSED.get(name, "a mull model has no such argument; leave it out")
                raise ValueError(f"{name} is refused: {why}")
        check_cache(cache)
        if self.training and labels is not None and (use_cache or cache is not None):
            raise ValueError("a cached call keeps no gradients: leave use_cache out in training")
        if labels is not None and not self.mull.config.causal:
            raise ValueError(
                "labels are refused: this model has causal: false and answers in place, and the loss of causal models "
                "is that of the next token; compute it from the logits, or train with mull train"
            )

    # Embeddings, modes and folders ------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> MullForCausalLM:
        super().train(mode)
        self.mull.training = mode
        return self

    def _replicate_for_data_parallel(self) -> MullForCausalLM:
        """A copy for another device, as the Trainer makes where a process sees several: a body of its own comes with
        it, since the other one has the tensors of the first device."""
        face: MullForCausalLM = super()._replicate_for_data_parallel()
        face.__dict__["mull"] = body = self.mull._replicate_for_data_parallel()
        for shared in ("_modules", "_parameters", "_buffers"):
            body.__dict__[shared] = face.__dict__[shared]
        return face

    def get_input_embeddings(self) -> nn.Module:
        return self.mull.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.mull.embedding = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """The module whose table the logits come from: the head, or the embedding where it is tied."""
        return self.mull.embedding if self.mull.head is None else self.mull.head

    def set_output_embeddings(self, value: nn.Module) -> None:
        if self.mull.head is None:
            raise ValueError(
                "the head is tied to the embedding; set the embedding, or train with tie_embeddings: false"
            )
        self.mull.head = value  # type: ignore[assignment]

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *_: Any, **__: Any) -> Any:
        if new_num_tokens not in (None, self.config.vocab_size):
            raise ValueError(
                f"the vocabulary of {self.config.vocab_size} tokens cannot become {new_num_tokens}: it is that of the "
                "folder's tokenizer; train a model with the larger one"
            )
        return self.get_input_embeddings()

    def activation_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        raise ValueError(
            "gradient checkpointing is refused: memory does not grow with the iterations under backprop_iterations, an "
            "argument of forward and a field of the config"
        )

    gradient_checkpointing_enable = activation_checkpointing_enable

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: mull's model has started its weights by their roles already."""

    @classmethod
    def can_generate(cls) -> bool:
        return True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """See `saving.open_folder`."""
        return open_folder(cls, pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """See `saving.save_folder`."""
        save_folder(self, save_directory, **kwargs)


def within_call(attention_mask: Tensor | None, input_ids: Tensor, seen: int) -> Tensor | None:
    """The mask of the tokens of this call, (B, T), out of one that may begin with what the cache has seen; None where
    it hides nothing. Raises ValueError for a mask of another shape."""
    if attention_mask is None:
        return None
    mask = torch.as_tensor(attention_mask)
    length = input_ids.shape[-1]
    if mask.dim() != 2 or mask.shape[1] not in (length, seen + length):
        behind = f", or {seen + length} columns with those in the cache" if seen else ""
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; it must be ({len(input_ids)}, {length}), 1 at tokens and 0 "
            f"at padding{behind}"
        )
    mask = mask[:, -length:]
    return None if bool((mask == 1).all()) else mask


MULL_MODELS: dict[str, type[MullForCausalLM]] = {}  # by model_type


def model_class(config: type[MullConfig]) -> type[MullForCausalLM]:
    """The model class of a family: MullRecurrentDepthForCausalLM, for example."""
    body = {"__doc__": f"A {config.model_type} model.", "__module__": __name__, "config_class": config}
    name = config.__name__.removesuffix("Config") + "ForCausalLM"
    MULL_MODELS[config.model_type] = globals()[name] = type(name, (MullForCausalLM,), body)  # where pickle finds it
    return MULL_MODELS[config.model_type]
