"""Registries: a word stands for one thing, an unknown one is told the known ones, and families find their own."""

from collections.abc import Callable

import pytest

from mull.models import LanguageModel, RecurrentDepthTransformer, Transformer, TransformerConfig
from mull.models.families import FAMILIES, class_named, family_of
from mull.models.injection import INJECTIONS
from mull.models.language_model import family
from mull.models.registry import Registry
from mull.models.rules import RULES


def test_a_word_stands_for_what_was_registered_in_that_order() -> None:
    fruits: Registry[Callable[[], str]] = Registry("fruit")

    @fruits.register("pear")
    def pear() -> str:
        return "a pear"

    @fruits.register("fig")
    def fig() -> str:
        return "a fig"

    assert list(fruits) == ["pear", "fig"]
    assert fruits["fig"] is fig and fig() == "a fig"  # the decorator hands back what it got


def test_a_word_that_is_taken_is_refused_and_what_has_it_keeps_it() -> None:
    fruits: Registry[object] = Registry("fruit")
    fruits.register("pear")(int)
    with pytest.raises(ValueError, match=r"fruit 'pear' .*already, .*int.*; choose another name"):
        fruits.register("pear")(float)
    assert fruits["pear"] is int
    with pytest.raises(ValueError, match=r"rule 'paper' .*already"):
        RULES.register("paper")(RULES["update"])
    with pytest.raises(ValueError, match=r"injection 'add' .*already"):
        INJECTIONS.register("add")(INJECTIONS["concat"])


def test_a_module_that_is_loaded_again_takes_the_place_of_its_old_self() -> None:
    """As notebooks do: the new class has the name and the module of the old one."""
    fruits: Registry[type] = Registry("fruit")

    def load() -> type:
        @fruits.register("pear")
        class Pear:
            pass

        return Pear

    old, new = load(), load()
    assert old is not new and fruits["pear"] is new


def test_an_unknown_word_is_told_the_known_ones() -> None:
    fruits: Registry[object] = Registry("fruit")
    fruits.register("pear")(int)
    fruits.register("fig")(float)
    assert fruits.wrong("pear") is None
    for unknown in ("apple", "", 3, None, ["pear"]):
        assert fruits.wrong(unknown) == f"must be one of 'pear', 'fig', not {unknown!r}"


def test_every_family_is_found_by_its_word_its_model_and_its_names() -> None:
    assert {"transformer", "recurrent_depth", "inner_thinking"} <= set(FAMILIES)
    for model_type, model_class in FAMILIES.items():
        config_class = model_class.config_class
        assert config_class.model_type == model_type
        assert class_named(model_class.__name__) is model_class
        assert class_named(config_class.__name__) is config_class
        assert family_of(model_class(config_class(vocab_size=3, d_model=8, n_heads=2))) == model_type
    assert class_named("LanguageModel") is None


def test_a_class_that_nobody_registered_is_no_family() -> None:
    """A subclass may compute something else: a folder that says `transformer` would load as another model."""

    class Mine(Transformer):
        pass

    with pytest.raises(ValueError, match=r"a Mine cannot be saved as a folder.*transformer.*@family"):
        family_of(Mine(TransformerConfig(vocab_size=3, d_model=8, n_heads=2)))
    with pytest.raises(ValueError, match=r"model_type 'transformer' .*already"):
        family(Mine)
    assert FAMILIES["transformer"] is Transformer


def test_a_family_of_ones_own_is_one_after_its_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    class MineConfig(TransformerConfig):
        model_type = "mine"

    class Mine(Transformer):
        config_class = MineConfig

    monkeypatch.setitem(FAMILIES, "mine", Mine)  # taken back after the test; `family` finds itself there
    assert family(Mine) is Mine
    model: LanguageModel = Mine(MineConfig(vocab_size=3, d_model=8, n_heads=2))
    assert family_of(model) == "mine" and class_named("MineConfig") is MineConfig
    assert family_of(RecurrentDepthTransformer(RecurrentDepthTransformer.config_class(vocab_size=3))) != "mine"
