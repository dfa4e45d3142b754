"""The tokenizer of a mull folder as transformers has tokenizers: the same tokens for the same text as mull's prompts.

Two things of a prompt are mull's rule (inference/text.py) and not the default of transformers: words like "<end>" in a
text are text, and what a template puts behind a text is left out, since the model is to write on. Rows are padded on
the left, with a control token where there is one. What has no token is not refused here, but becomes the tokenizer's
unknown token: a tokenizer of transformers also reads corpora.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mull.checkpoints import store
from mull.inference.hugging_face.folders import HUB, folder_of, in_one_line
from mull.inference.text import control_tokens


class MullTokenizer(PreTrainedTokenizerFast):
    """See the head of this file. `original` is the tokenizer as the folder has it."""

    original: Tokenizer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *others: Any, **kwargs: Any) -> MullTokenizer:
        """The tokenizer of a folder; other arguments are the constructor's, such as padding_side.

        Raises:
            FolderError: the folder has none, or is damaged.
        """
        place = {name: kwargs.pop(name) for name in (*HUB, "subfolder") if name in kwargs}
        folder = folder_of(pretrained_model_name_or_path, **place)
        with in_one_line():
            tokenizer = store.load_tokenizer(folder)
            config = store.read_config(folder)[0]
        given = {name: value for name, value in kwargs.items() if not name.startswith("_")}
        return cls.of(tokenizer, config.stop_tokens, config.max_length, **given)

    @classmethod
    def of(
        cls, tokenizer: Tokenizer, stop_tokens: Sequence[int] = (), max_length: int | None = None, **others: Any
    ) -> MullTokenizer:
        """A tokenizer of mull's as one of transformers; it is left as it is."""
        control, pad = control_tokens(tokenizer), padding_token(tokenizer, stop_tokens)
        ends = [token for token in stop_tokens if token in control]
        named = {"pad_token": pad if pad in control else None, "eos_token": ends[0] if ends else None}
        settings: dict[str, Any] = {
            "padding_side": "left",
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            **({} if max_length is None else {"model_max_length": max_length}),
            **{name: tokenizer.id_to_token(token) for name, token in named.items() if token is not None},
        }
        found = cls(tokenizer_object=for_prompts(tokenizer), **{**settings, **others})
        found.original = tokenizer
        return found

    def _save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """As transformers has it; tokenizer.json is the folder's own, byte for byte as mull.save writes it, unless
        tokens were added since: the checksum in config.json vouches for it."""
        names = super()._save_pretrained(save_directory, *args, **kwargs)
        original = getattr(self, "original", None)
        if original is not None and original.get_vocab_size() == len(self):
            (Path(save_directory) / store.TOKENIZER).write_text(original.to_str(pretty=True), encoding="utf-8")
        return names


def padding_token(tokenizer: Tokenizer | None, stop_tokens: Sequence[int]) -> int | None:
    """What rows are filled up with: a stop token that is a control token, another control token, or a stop token."""
    control = set() if tokenizer is None else control_tokens(tokenizer)
    return next(iter([*[t for t in stop_tokens if t in control], *sorted(control), *stop_tokens]), None)


def for_prompts(tokenizer: Tokenizer) -> Tokenizer:
    """A copy whose template puts nothing behind a text."""
    parts = json.loads(tokenizer.to_str())
    parts["post_processor"] = without_ending(parts["post_processor"])
    copy = Tokenizer.from_str(json.dumps(parts))
    copy.no_truncation()
    copy.no_padding()
    return copy


def without_ending(processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """A post-processor of tokenizer.json that puts nothing behind a text."""
    if processor is None:
        return None
    kind = processor["type"]
    if kind == "Sequence":
        return {**processor, "processors": [without_ending(each) for each in processor["processors"]]}
    if kind == "TemplateProcessing":
        template = processor["single"]
        end = max(place for place, part in enumerate(template) if "Sequence" in part)
        return {**processor, "single": template[: end + 1]}
    if kind in ("BertProcessing", "RobertaProcessing"):  # fixed templates: first, the text, last
        word, token = processor["cls"]
        first = {"SpecialToken": {"id": word, "type_id": 0}}
        return {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {word: {"id": word, "ids": [token], "tokens": [word]}},
        }
    return processor
