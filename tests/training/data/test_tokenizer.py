"""Byte-level tokenization is exact, and any tokenizer.json is taken as it is."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing

from mull.inference.text import encode, encode_documents
from mull.training.data.tokenizer import byte_tokenizer, load_tokenizer, stop_tokens_of, vocab_size_of

BYTES = byte_tokenizer()
REREAD = Tokenizer.from_str(BYTES.to_str())


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_bytes_go_in_and_come_out(text: str) -> None:
    """Any Unicode text: ids are its UTF-8 bytes, and decoding returns it, also after a trip through tokenizer.json."""
    for tokenizer in (BYTES, REREAD):
        ids = tokenizer.encode(text.replace("<end>", "")).ids
        assert bytes(ids) == text.replace("<end>", "").encode()
        assert tokenizer.decode(ids) == text.replace("<end>", "")


def test_every_byte_has_its_own_id() -> None:
    """256 bytes and <end>, which decoding leaves out."""
    assert vocab_size_of(BYTES) == 257 and stop_tokens_of(BYTES) == (256,)
    assert sorted(BYTES.get_vocab().values()) == list(range(257))
    assert BYTES.encode("a<end>").ids == [97, 256] and BYTES.decode([97, 256]) == "a"


def test_a_given_tokenizer_keeps_its_end_token_and_loses_its_limits(tmp_path: Path) -> None:
    """A stored truncation would silently cut every document; a published end token is used, not doubled."""
    tokenizer = Tokenizer(WordLevel({"a": 0, "</s>": 7}, unk_token="a"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert loaded.truncation is None and loaded.padding is None
    assert stop_tokens_of(loaded) == (7,)
    assert vocab_size_of(loaded) == 8  # ids, not entries: the hole between 0 and 7 counts


def test_a_tokenizer_without_end_gets_one(tmp_path: Path) -> None:
    """Packing needs a separator and generation needs a stop."""
    Tokenizer(BPE({"a": 0, "b": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert stop_tokens_of(loaded) == (2,) and loaded.id_to_token(2) == "<end>"


def test_a_template_is_no_part_of_a_corpus_tokenizer(tmp_path: Path) -> None:
    """Documents are packed without [CLS], so the folder's tokenizer puts none before a prompt either; and a known end
    token is one that decoding leaves out."""
    tokenizer = Tokenizer(WordLevel({"a": 0, "[CLS]": 1, "[SEP]": 2, "?": 3}, unk_token="?"))
    specials = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=specials)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    reread = Tokenizer.from_str(loaded.to_str())
    assert encode(tokenizer, "a") == [1, 0]
    assert encode(loaded, "a") == encode(reread, "a") == [0] == encode_documents(loaded, ["a"])[0]
    assert stop_tokens_of(loaded) == (2,) and reread.decode([0, 2]) == "a"


def test_missing_and_broken_tokenizers_are_named(tmp_path: Path) -> None:
    """One line with the path, whatever the library says inside."""
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*gone.json: name a tokenizer.json file"):
        load_tokenizer(str(tmp_path / "gone.json"))
    for content in (b"", b"{}", b'{"model": 3', b"\xff\xfe"):
        (tmp_path / "broken.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"broken.json is no tokenizer") as error:
            load_tokenizer(str(tmp_path / "broken.json"))
        assert "\n" not in str(error.value)
