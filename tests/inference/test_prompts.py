"""Prompts as people have them: files with their line ends, marks and faults; texts, lists and arrays in Python."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mull.inference.generate import generate, stream
from mull.inference.prompts import OWN, as_prompts, read_prompts
from mull.models import LanguageModel
from mull.training.data.tokenizer import byte_tokenizer

MakeModel = Callable[..., LanguageModel]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> LanguageModel:
    """A model of bytes with the tokenizer that `mull.load` would have found in its folder."""
    made = make_model("recurrent", vocab_size=257, stop_tokens=(256,))
    made.tokenizer = byte_tokenizer()
    return made


def lines(tmp_path: Path, content: bytes, name: str = "prompts.txt") -> list[tuple[int, str, bool]]:
    (tmp_path / name).write_bytes(content)
    return [(line.number, line.prompt, line.wrong is None) for line in read_prompts(str(tmp_path / name))]


def test_lines_end_at_line_ends_and_nowhere_else(tmp_path: Path) -> None:
    r"""\n and \r\n end lines; form feeds, U+2028 and lone \r are text, a byte order mark is none."""
    found = lines(tmp_path, "\ufeffone\r\ntwo\x0cpages\n\n  \nthree\u2028\x85\x1c\rlines\nend".encode())
    assert found == [
        (1, "one", True),
        (2, "two\x0cpages", True),
        (5, "three\u2028\x85\x1c\rlines", True),
        (6, "end", True),
    ]


def test_a_bad_line_is_known_by_its_number(tmp_path: Path) -> None:
    assert lines(tmp_path, b"caf\xc3\xa9\ncaf\xe9\nend") == [(1, "café", True), (2, "", False), (3, "end", True)]
    records = b'{"prompt": "a\\nb", "id": 7}\n[1]\n{"text": "x"}\n{"prompt": 3}\n{oops\n' + b"[" * 100000
    found = lines(tmp_path, b"\xef\xbb\xbf" + records, "prompts.jsonl")
    assert found == [(1, "a\nb", True), *[(number, "", False) for number in range(2, 7)]]
    for content in (b"", b"\n \r\n", b"\xef\xbb\xbf"):
        with pytest.raises(ValueError, match="holds no prompt; give one a line"):
            lines(tmp_path, content)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ('"x": NaN', "NaN is no number that the answer could hand on as JSON; give a finite one, or null"),
        ('"x": [{"y": -Infinity}]', "-Infinity is no number"),
        ('"x": Infinity', "Infinity is no number"),
        ('"x": -1e999', "-1e999 is no number"),
        *((f'"{name}": 1', f"the answer has a field {name} of its own: rename that of the record") for name in OWN),
    ],
)
def test_what_an_answer_could_not_hand_on_is_named(tmp_path: Path, fields: str, says: str) -> None:
    """The line is refused, not the file, and other fields go through as they are."""
    good = {"prompt": "b", "id": 7, "Text": [1.5, None, {"text": "é"}]}
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "a", {fields}}}\n{json.dumps(good)}')
    wrong, right = read_prompts(str(tmp_path / "p.jsonl"))
    assert wrong.number == 1 and wrong.wrong is not None and wrong.wrong.startswith(says) and "\n" not in wrong.wrong
    assert right.wrong is None and right.record == good


def test_a_text_is_a_prompt_and_a_list_of_texts_is_a_batch(model: LanguageModel) -> None:
    """What ids say by hand; each row of the batch as alone."""
    ids = torch.tensor([list(b"It was")])
    by_hand = generate(model, ids, 3, max_new_tokens=5)
    result = generate(model, "It was", 3, max_new_tokens=5)
    assert torch.equal(result.tokens, by_hand.tokens)
    assert result.text == byte_tokenizer().decode(by_hand.new_tokens[0].tolist()) and by_hand.text == [result.text]
    batch = generate(model, ["It was", "x", "日本"], 3, max_new_tokens=5)
    assert batch.text == [generate(model, text, 3, max_new_tokens=5).text for text in ("It was", "x", "日本")]
    assert torch.equal(next(stream(model, "It was", 3)).tokens, by_hand.new_tokens[:, 0])


@pytest.mark.parametrize(
    "ids",
    [
        [[1, 2, 200]],
        ((1, 2, 200),),
        np.array([[1, 2, 200]]),
        np.array([[1, 2, 200]], dtype=np.uint8),
        np.array([[1, 2, 200]], dtype=np.uint16),
        torch.tensor([[1, 2, 200]], dtype=torch.uint8),
        torch.tensor([[1, 2, 200]], dtype=torch.int32),
        torch.tensor([[1, 2, 200]], dtype=torch.int16),
    ],
    ids=lambda ids: f"{type(ids).__name__}-{getattr(ids, 'dtype', '')}",
)
def test_integers_of_any_kind_are_ids(model: LanguageModel, ids: Any) -> None:
    """In generation and in a call of the model."""
    wide = torch.tensor([[1, 2, 200]])
    assert torch.equal(
        generate(model, ids, 2, max_new_tokens=3).tokens, generate(model, wide, 2, max_new_tokens=3).tokens
    )
    assert torch.equal(model(ids, 2).logits, model(wide, 2).logits)


def test_lists_of_different_lengths_are_padded_and_masked(model: LanguageModel) -> None:
    prompts = as_prompts(model, [[1], [2, 3, 4]])
    assert prompts.ids.tolist() == [[0, 0, 1], [2, 3, 4]] and prompts.mask is not None
    assert prompts.mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    rows = generate(model, [[1], [2, 3, 4]], 2, max_new_tokens=4).new_tokens
    assert torch.equal(rows[0], generate(model, [[1]], 2, max_new_tokens=4).new_tokens[0])


@pytest.mark.parametrize(
    "mask", [[[0, 1, 1]], np.array([[0, 1, 1]]), torch.tensor([[0.0, 1, 1]]), [[False, True, True]]]
)
def test_masks_of_any_kind_hide_the_same(model: LanguageModel, mask: Any) -> None:
    expected = generate(model, [[5, 6]], 2, max_new_tokens=3).new_tokens
    assert torch.equal(generate(model, [[9, 5, 6]], 2, max_new_tokens=3, attention_mask=mask).new_tokens, expected)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_counts_of_numpy_are_counts(model: LanguageModel, kind: Any) -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    expected = generate(model, ids, 3, max_new_tokens=2).tokens
    assert torch.equal(generate(model, ids, kind(3), max_new_tokens=kind(2)).tokens, expected)
    for counts in (np.array([2, 9], kind), torch.from_numpy(np.array([2, 9], kind))):
        wide = model(ids, torch.tensor([2, 9]))
        assert torch.equal(model(ids, counts).logits, wide.logits)
        assert torch.equal(model(ids, counts).iterations, wide.iterations)


ADDITIVE = torch.tensor([[0.0, -1e9]])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m("text"), "input_ids must be integers of shape (batch, positions), not text"),
        (lambda m: m(["text"]), "not text: encode it, or give it to mull.generate"),
        (lambda m: m(None), "input_ids must be integers"),
        (lambda m: m([[1, 2], [3]]), "input_ids must be integers"),
        (lambda m: m(torch.tensor([[0.5]])), "not torch.float32 of shape (1, 1)"),
        (lambda m: m(torch.tensor([[True]])), "not torch.bool"),
        (lambda m: m(torch.tensor([[1, 257]])), "token id 257 lies outside the vocabulary of 257 (0 .. 256)"),
        (lambda m: m(torch.tensor([[1, -1]])), "token id -1 lies outside"),
        (lambda m: m(torch.tensor([[1, 2]]), attention_mask=ADDITIVE), "1 at tokens and 0 at padding, never additive"),
        (lambda m: m(torch.tensor([[1, 2]]), 2.0), "iterations must be an integer of at least 1, not 2.0"),
        (lambda m: m(torch.tensor([[1, 2]]), np.float32(2)), "iterations must be an integer"),
        (lambda m: m(torch.tensor([[1, 2]]), "2"), "iterations must be an integer of at least 1, not '2'"),
        (lambda m: m(torch.tensor([[1]]), 2, state=torch.zeros(1, 1, 24).double(), generator=torch.Generator()),
         "generator draws one: give one of them"),
        (lambda m: m.new_cache(1, 8, "full", 2), "ring=2 is of the cache policy shared"),
        (lambda m: generate(m, [[1, 2]], attention_mask=ADDITIVE), "never additive; pass (additive == 0) instead"),
        (lambda m: generate(m, "ab", attention_mask=[[1, 1]]), "attention_mask is for ids; text has its own"),
        (lambda m: generate(m, [[1], [1, 2]], attention_mask=[[1, 1]]), "attention_mask is for ids of one length"),
        (lambda m: generate(m, [1, 2]), "a single prompt is a batch of one"),
        (lambda m: generate(m, b"ab"), "not bytes; text is a str or a list of str"),
        (lambda m: generate(m, None), "not NoneType"),
        (lambda m: generate(m, ["ab", 3]), "prompt_ids must be integers"),
        (lambda m: generate(m, [[1.5, 2.0]]), "prompt_ids must be integers"),
        (lambda m: generate(m, [[], [1]]), "row 0 of the prompts is empty"),
        (lambda m: generate(m, []), "prompt_ids must be integers"),
        (lambda m: generate(m, ["ab", ""]), "prompt 1 of 2 (from 0): the prompt is empty"),
        (lambda m: generate(m, "ab", max_new_tokens=2.0), "max_new_tokens must be an integer"),
        (lambda m: generate(m, "ab", stop_tokens=[3.5]), "stop_tokens must be a list of token ids"),
        (lambda m: generate(m, "ab", stop_tokens="x"), "text is for stop="),
        (lambda m: generate(m, "ab", stop=""), "none of them empty, not ''"),
        (lambda m: generate(m, "ab", stop=[3]), "stop must be a text or a list of texts"),
        (lambda m: generate(m, "ab", ring=2), "ring=2 is of the cache policy shared"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_refused_in_one_line(
    model: LanguageModel, call: Callable[[LanguageModel], Any], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_text_needs_a_tokenizer(make_model: MakeModel) -> None:
    bare = make_model("recurrent")
    assert generate(bare, [[1, 2]], max_new_tokens=2).text is None
    with pytest.raises(ValueError, match="the model has no tokenizer, so it cannot read 'It was': give ids"):
        generate(bare, "It was")
    with pytest.raises(ValueError, match="stop='x' is text, and the model has no tokenizer; stop_tokens takes ids"):
        generate(bare, [[1, 2]], stop="x")


def test_stop_strings_end_rows_one_by_one(model: LanguageModel) -> None:
    """A row ends with the token that completes a stop string, its text before the string; the others go on."""
    plain = generate(model, ["It was", "xy"], 3, max_new_tokens=12, stop_tokens=())
    first, second = plain.new_tokens.tolist()
    stop = byte_tokenizer().decode(first)[3:5]
    result = generate(model, ["It was", "xy"], 3, max_new_tokens=12, stop_tokens=(), stop=["never", stop])
    assert plain.text is not None and result.text == [text.split(stop)[0] for text in plain.text]
    lengths = (result.iterations > 0).sum(dim=1).tolist()
    assert lengths[0] < 12 and result.new_tokens[0, : lengths[0]].tolist() == first[: lengths[0]]
    assert result.new_tokens[1, : lengths[1]].tolist() == second[: lengths[1]]
    for decode in ("speculate:1:4", "wavefront:1:4"):
        told = generate(model, ["It was", "xy"], 3, max_new_tokens=12, stop_tokens=(), stop=stop, decode=decode)
        assert told.text is not None and all(stop not in text for text in told.text)
