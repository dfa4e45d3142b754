"""Text becomes ids by one rule and ids become text by one, whatever the tokenizer; streaming equals decoding whole.

The tokenizers are tiny ones of every kind that published models have.
"""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from mull.inference.text import TextStream, continuation, encode, encode_documents
from mull.training.data.tokenizer import byte_tokenizer

CORPUS = ["the cat sat on the mat, the café is naïve", "a cat's mat"] * 4


def byte_level() -> Tokenizer:
    """Byte-level byte-pair encoding, as GPT-2 and Llama 3 have it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Byte-pair encoding with a token for every byte that no symbol covers, as Llama 2 has it."""
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"acehmnost"]
    ids = {symbol: place for place, symbol in enumerate([*symbols, "▁t", "▁c", "▁ca", "▁cat"])}
    merges = [("▁", "t"), ("▁", "c"), ("▁c", "a"), ("▁ca", "t")]
    tokenizer = Tokenizer(BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def metaspace() -> Tokenizer:
    """Unigrams over words that carry the blank before them, as T5 has it."""
    pieces = ["▁the", "▁cat", "▁", *"abcdefghijklmnopqrstuvwxyz,'é"]
    scores = [("<unk>", 0.0), ("</s>", 0.0), *((piece, -float(place + 1)) for place, piece in enumerate(pieces))]
    tokenizer = Tokenizer(Unigram(scores, unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def word_piece() -> Tokenizer:
    """Words and their ends between [CLS] and [SEP], as BERT has it."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", "the", "cat", ",", ".", "'", *"abcdefghijklmnopqrstuvwxyz"]
    ids = {piece: place for place, piece in enumerate([*pieces, "##s", "##at", "##t", "##é"])}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    specials = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=specials)
    return tokenizer


def words() -> Tokenizer:
    """Words between blanks, which decode with a blank between any two."""
    symbols = ["the", "cat", "sat", "on", "mat", "<?>", "<end>"]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(symbols)}, unk_token="<?>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


KINDS = {
    "bytes": byte_tokenizer(),
    "byte-level": byte_level(),
    "byte-fallback": byte_fallback(),
    "metaspace": metaspace(),
    "word-piece": word_piece(),
    "words": words(),
}

kinds = pytest.mark.parametrize("kind", KINDS)
TEXTS = st.text(st.sampled_from("the cat's mat, éñ😀👩‍👧\u0301\u0308日\n\x00"), min_size=1, max_size=12)


def streamed(stream: TextStream, answer: list[int]) -> list[str]:
    return [*[stream.add(token) for token in answer], stream.rest()]


@kinds
@given(st.data())
def test_streaming_equals_decoding_whole(kind: str, data: st.DataObject) -> None:
    """Any ids, also such as no text has: lone bytes, control tokens, a character that begins in the prompt."""
    tokenizer = KINDS[kind]
    ids = st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=12)
    if kind in ("bytes", "byte-level", "byte-fallback"):  # whole characters, with a byte more or less here and there
        offset = {"bytes": 0, "byte-level": None, "byte-fallback": 3}[kind]
        if offset is not None:
            utf8 = TEXTS.map(lambda text: [byte + offset for byte in text.encode()])
            ids = st.one_of(ids, utf8, utf8.map(lambda all_of_it: all_of_it[:-1]), st.builds(list.__add__, utf8, ids))
    prompt, answer = data.draw(ids), data.draw(ids)
    whole, before = tokenizer.decode(prompt + answer), tokenizer.decode(prompt)
    parts = streamed(TextStream(tokenizer, prompt), answer)
    assert "".join(parts) == continuation(tokenizer, prompt, answer)
    if whole.startswith(before):
        assert before + "".join(parts) == whole


@kinds
@given(st.data())
def test_stop_strings_end_the_text_wherever_tokens_part_them(kind: str, data: st.DataObject) -> None:
    """Whatever way a stop string is spelled, nothing of it or behind it is shown, and what stands before it is."""
    tokenizer = KINDS[kind]
    answer = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), min_size=1, max_size=12))
    whole = continuation(tokenizer, [], answer)
    start = data.draw(st.integers(0, max(len(whole) - 1, 0)))
    stop = whole[start : start + data.draw(st.integers(1, 3))]
    stops = [each for each in (stop, "never") if each]
    stream = TextStream(tokenizer, [], stops)
    text = "".join(streamed(stream, answer))
    assert text == continuation(tokenizer, [], answer, stops) == (whole.split(stop)[0] if stop else whole)


def test_a_character_is_shown_when_it_is_whole_and_an_incomplete_one_at_the_end() -> None:
    smile = [*"😀".encode()]
    assert streamed(TextStream(KINDS["bytes"], [97]), [*smile, 98]) == ["", "", "", "😀", "b", ""]
    assert streamed(TextStream(KINDS["bytes"], [97]), [98, *smile[:3]]) == ["b", "", "", "", "\ufffd"]
    assert streamed(TextStream(KINDS["bytes"], smile[:2]), smile[2:]) == ["", "😀", ""], "half of it is in the prompt"
    fallback = KINDS["byte-fallback"]
    cat = fallback.token_to_id("▁cat")
    # a lone byte would spoil those before it, so bytes wait for what is no byte
    assert streamed(TextStream(fallback, [cat]), [byte + 3 for byte in smile] + [cat]) == ["", "", "", "", "😀 cat", ""]


def test_the_blank_between_prompt_and_answer_is_kept() -> None:
    for kind in ("byte-fallback", "metaspace", "word-piece", "words"):
        tokenizer = KINDS[kind]
        prompt, both = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("the", "the cat"))
        assert both[: len(prompt)] == prompt
        assert "".join(streamed(TextStream(tokenizer, prompt), both[len(prompt) :])) == " cat", kind


@kinds
def test_a_prompt_gets_what_a_document_gets_and_no_end(kind: str) -> None:
    """Nothing stands behind either, and before a prompt only what the tokenizer of the folder puts there."""
    tokenizer = KINDS[kind]
    ids = encode(tokenizer, "the cat")
    opening = {"byte-fallback": [1], "word-piece": [1]}.get(kind, [])
    assert [opening + document for document in encode_documents(tokenizer, ["the cat"])] == [ids]
    assert encode(tokenizer, "the cat", opening=False) == ids[len(opening) :]
    assert tokenizer.encode_special_tokens is False, "a tokenizer is left as it was"


@pytest.mark.parametrize(("kind", "name"), [("bytes", "<end>"), ("byte-level", "<end>"), ("byte-fallback", "</s>")])
def test_a_control_token_that_is_typed_is_text(kind: str, name: str) -> None:
    tokenizer = KINDS[kind]
    control = tokenizer.token_to_id(name)
    assert control not in encode(tokenizer, f"cat{name}") and control not in encode_documents(tokenizer, [name])[0]
    assert name in tokenizer.decode(encode(tokenizer, f"the {name} cat"))


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("words", "the dog sat", "unknown symbol 'dog'; known are cat mat on sat the, with blanks between them"),
        ("words", "the <end> sat", "unknown symbol '<end>' (a control token, which no text spells)"),
        ("words", "   ", "the prompt is empty: of '   ' the tokenizer keeps nothing"),
        ("word-piece", "the 😀 cat", "unknown symbol '😀'"),
        ("metaspace", "a 😀", "unknown symbol '😀'"),
        ("bytes", "", "the prompt is empty"),
        ("bytes", "caf\udce9 au lait", "not UTF-8 text: byte 0xe9 at character 4; convert it"),
        ("bytes", "a\ud83d", "half a character, U+D83D, at character 2"),
        ("bytes", b"bytes", "a prompt is text, not bytes"),
    ],
)
def test_what_has_no_tokens_is_refused_in_one_line(kind: str, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        encode(KINDS[kind], text)
    assert "\n" not in str(caught.value)


def test_symbols_that_a_tokenizer_would_drop_are_refused() -> None:
    """Byte-pair encoding without an unknown token leaves them out without a word."""
    tokenizer = Tokenizer(BPE({"a": 0, "b": 1}, []))
    assert tokenizer.encode("axb").ids == [0, 1]
    with pytest.raises(ValueError, match="the prompt holds the unknown symbol 'x'; known are a b"):
        encode(tokenizer, "axb")
    with pytest.raises(ValueError, match=r"cannot read the prompt 'x': .*UNK"):
        encode(Tokenizer(WordLevel({"a": 0}, unk_token="gone")), "x")


def test_limits_that_are_stored_with_a_tokenizer_cut_no_prompt() -> None:
    tokenizer = words()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    assert encode(tokenizer, "the cat sat on") == [0, 1, 2, 3]
    assert encode_documents(tokenizer, ["the cat sat on", "mat"]) == [[0, 1, 2, 3], [4]]
    assert tokenizer.truncation is not None


def test_a_template_that_names_a_token_it_does_not_define_is_an_error_and_no_panic() -> None:
    """The library panics, which is no Exception: nobody who catches errors would catch it."""
    parts = json.loads(byte_tokenizer().to_str())
    pieces = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": pieces, "pair": pieces * 2, "special_tokens": {}}
    broken = Tokenizer.from_str(json.dumps(parts | {"post_processor": template}))
    with pytest.raises(ValueError, match=r"the tokenizer cannot read the prompt 'ab': .*mend its tokenizer.json"):
        encode(broken, "ab")
    broken.encode_special_tokens = False
    assert encode_documents(broken, ["ab"]) == [[97, 98]]  # documents get no template


def test_a_document_that_cannot_be_read_is_an_error_of_one_kind() -> None:
    """Words without an unknown token raise a bare Exception, which a command would take for a defect of its own."""
    strict = Tokenizer(WordLevel({"a": 0}))
    strict.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match=r"the tokenizer cannot read the text 'a b', or behind it: .*mend"):
        encode_documents(strict, ["a b"])
