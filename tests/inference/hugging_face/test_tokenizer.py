"""The tokenizer: the tokens of mull's prompts, for any text and any template, and what pads."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mull.inference.hugging_face import MullTokenizer
from mull.inference.text import encode

TEXTS = {
    "text": ["Tom has 3 apples.", " a  b\n\tc ", "é 漢字 \U0001f600", "say <end> twice <end>", "<start>", "x" * 300],
    "parity": ["1 0 1", "  0\n1 ", "1 0 1 1 0"],
}
TEXTS["inner-thinking"] = TEXTS["text"]


@pytest.mark.parametrize("name", ["parity", "text", "inner-thinking"])
def test_prompts_of_the_shipped_folders(opened: Callable[[str], Any], name: str) -> None:
    """Guards equal prompts: alone, in a padded batch, and back to text."""
    model, tokenizer = opened(name)
    wanted = [encode(model.mull.tokenizer, text) for text in TEXTS[name]]
    assert [tokenizer(text)["input_ids"] for text in TEXTS[name]] == wanted
    rows = tokenizer(TEXTS[name], return_tensors="pt", padding=True)
    for ids, mask, row in zip(rows["input_ids"], rows["attention_mask"], wanted, strict=True):
        assert ids[mask == 1].tolist() == row and (ids[mask == 0] == tokenizer.pad_token_id).all()
        assert mask.sort().values.tolist() == mask.tolist()  # on the left
    if name != "parity":
        assert tokenizer.batch_decode(rows["input_ids"], skip_special_tokens=True) == TEXTS[name]
        assert tokenizer.pad_token == tokenizer.eos_token == "<end>"
    assert tokenizer.padding_side == "left" and tokenizer.model_max_length == model.config.max_length
    assert len(tokenizer) == model.mull.tokenizer.get_vocab_size() and {*rows} == {"input_ids", "attention_mask"}


BERT = processors.BertProcessing(("<end>", 5), ("<start>", 4))
TEMPLATES = {
    "none": None,
    "opening": processors.TemplateProcessing("<start> $A", "$A $B", [("<start>", 4)]),
    "both": processors.TemplateProcessing("<start> $A <end>", "$A $B", [("<start>", 4), ("<end>", 5)]),
    "bert": BERT,
    "sequence": processors.Sequence([processors.ByteLevel(), BERT]),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(name: str) -> None:
    """Guards prompts against an ending: whatever the template puts behind a text, the model is to write on."""
    own = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2, "c": 3}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own.add_special_tokens(["<start>", "<end>"])
    if TEMPLATES[name] is not None:
        own.post_processor = TEMPLATES[name]
    own.enable_padding(length=9)
    before = own.to_str()
    tokenizer = MullTokenizer.of(own, stop_tokens=(3, 5), max_length=12)
    assert tokenizer("a b")["input_ids"] == encode(own, "a b") == ([] if name == "none" else [4]) + [0, 1]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<end>", "<end>") and own.to_str() == before
    assert tokenizer("a c", add_special_tokens=False)["input_ids"] == [0, 3]
