"""The tokenizer of a model travels with it: what was loaded can be saved elsewhere, and still reads text."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import mull
from mull.checkpoints import load_tokenizer
from mull.models import Transformer, TransformerConfig


def words(*known: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("<unk>", *known))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def build() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(vocab_size=4, d_model=4, n_heads=1, n_layers=1, max_length=16)).eval()


def test_a_loaded_model_is_saved_with_its_tokenizer(tmp_path: Path) -> None:
    mull.save(build(), tmp_path / "one", words("a", "b", "c"))
    model = mull.load(tmp_path / "one")
    mull.save(model, tmp_path / "two")
    again = mull.load(tmp_path / "two")
    assert again.tokenizer.to_str() == model.tokenizer.to_str()
    assert mull.generate(again, "a b", max_new_tokens=3).text == mull.generate(model, "a b", max_new_tokens=3).text


def test_a_tokenizer_that_is_given_wins_and_leaves_the_model_its_own(tmp_path: Path) -> None:
    model = build()
    model.tokenizer = words("a")
    mull.save(model, tmp_path, words("x", "y"))
    assert "x" in load_tokenizer(tmp_path).get_vocab() and "a" in model.tokenizer.get_vocab()


def test_the_tokenizer_of_a_folder_stays_where_nobody_has_another(tmp_path: Path) -> None:
    """A model without one may be trained anew over its folder; one with another replaces it."""
    mull.save(build(), tmp_path, words("a"))
    mull.save(build(), tmp_path)
    assert "a" in load_tokenizer(tmp_path).get_vocab()
    model = build()
    model.tokenizer = words("b")
    mull.save(model, tmp_path)
    assert "b" in mull.load(tmp_path).tokenizer.get_vocab()


def test_a_tokenizer_of_another_library_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = build()
    model.tokenizer = object()
    with pytest.raises(ValueError, match=r"must be a tokenizers.Tokenizer, not builtins.object; .*backend_tokenizer"):
        mull.save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
