"""Things written out as text: what is written is what is read back, and every mistake is one line with the way out."""

from dataclasses import asdict, dataclass, fields
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mull.inference.decoders import DECODERS
from mull.inference.exits import EXITS
from mull.inference.written import filled, parse
from mull.models.registry import Registry

SHAPES: Registry[type["Box"]] = Registry("shape")


@SHAPES.register("box")
@dataclass(frozen=True)
class Box:
    """Fields of every type that can be written, the first two without a default."""

    width: int
    height: float
    colour: str = "red"
    corners: int = 4
    weight: float = 0.5

    example: ClassVar[str] = "box:3:0.5"

    @classmethod
    def from_text(cls, text: str) -> "Box":
        return filled(cls, "shape box", text, cls.example)


BOXES = st.builds(
    Box,
    width=st.integers(),
    height=st.floats(allow_nan=False),
    colour=st.text(st.characters(exclude_characters=",:=", exclude_categories=["C"]), min_size=1),
    corners=st.integers(),
    weight=st.floats(allow_nan=False),
)


def written(thing: object, name: str, placed: int, order: list[int]) -> str:
    """The first `placed` fields behind colons, the others by name in this order."""
    values = [(key, str(value)) for key, value in asdict(thing).items()]  # type: ignore[call-overload]
    named = [f"{values[index][0]}={values[index][1]}" for index in order if index >= placed]
    return ",".join([":".join([name, *(value for _, value in values[:placed])]), *named])


@given(box=BOXES, placed=st.integers(0, 5), order=st.permutations(range(5)))
def test_what_is_written_is_read_back(box: Box, placed: int, order: list[int]) -> None:
    """However many values stand behind colons, and in whichever order the others are named."""
    assert parse(written(box, "box", placed, order), SHAPES) == box


@given(placed=st.integers(0, 5), left_out=st.sets(st.integers(2, 4)))
def test_what_is_left_out_has_its_default(placed: int, left_out: set[int]) -> None:
    box = Box(1, 2.0, "blue", 3, 0.25)
    text = written(box, "box", placed, [index for index in range(5) if index not in left_out])
    defaults = {field.name: field.default for field in fields(Box)}
    gone = {fields(Box)[index].name for index in left_out if index >= placed}
    assert asdict(parse(text, SHAPES)) == {k: defaults[k] if k in gone else v for k, v in asdict(box).items()}


@pytest.mark.parametrize("registry", [EXITS, DECODERS], ids=lambda registry: registry.kind)
def test_every_example_is_read_as_the_thing_that_it_is_an_example_of(registry: Registry[type]) -> None:
    for name, kind in registry.items():
        thing = parse(kind.example, registry)  # type: ignore[attr-defined]
        assert type(thing) is kind and kind.example.startswith(name)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in (*EXITS, *DECODERS) if name != "adaptive"])
def test_every_thing_is_read_back_with_every_field(name: str) -> None:
    """All options of all rules and decoders can be written, in any place; `adaptive` has a rule behind it instead."""
    registry: Registry[type] = EXITS if name in EXITS else DECODERS
    thing = parse(registry[name].example, registry)  # type: ignore[attr-defined]
    count = len(fields(thing))
    for placed in range(count + 1):
        text = written(thing, name, placed, list(reversed(range(count))))
        assert parse(text, registry) == thing, text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bax:1:2", "shape 'bax' is not known; known are box, as in box:3:0.5"),
        ("", "shape '' is not known"),
        ("box=3", "shape 'box=3' is not known"),
        ("box", "shape box lacks width and height; write box:3:0.5"),
        ("box:1", "shape box lacks height; write box:3:0.5"),
        ("box,height=1", "shape box lacks width; write box:3:0.5"),
        ("box:1.5:2", "shape box: width '1.5' is not an integer; write box:3:0.5"),
        ("box:²:2", "shape box: width '²' is not an integer; write box:3:0.5"),
        ("box::2", "shape box: width '' is not an integer"),
        ("box:1:two", "shape box: height 'two' is not a number; write box:3:0.5"),
        ("box:1:nan", "shape box: height 'nan' is not a number; write box:3:0.5"),
        ("box:1:2,weight=-NaN", "shape box: weight '-NaN' is not a number"),
        ("box:1:2,corners", "shape box: corners '' is not an integer"),
        ("box:1:2,corners=many", "shape box: corners 'many' is not an integer"),
        ("box:1:2:red:4:1:7", "has 6 values and takes 5 at most; write box:3:0.5"),
        (
            "box:1:2,depth=3",
            "shape box: option 'depth=3' is not known; give width=, height=, colour=, corners=, weight=",
        ),
        ("box:1:2,3", "option '3' is not known; give width="),
        ("box:1:2,=3", "option '=3' is not known"),
        ("box,width=1:2,height=3", "width '1:2' is not an integer"),
    ],
)
def test_a_mistake_is_named_with_what_can_be_written(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="shape") as caught:
        parse(text, SHAPES)
    assert says in str(caught.value) and "box:3:0.5" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["box:1:2,width=3", "box:1:2,corners=3,corners=5", "box:1:2:red:4:1:7\n8"])
def test_a_field_is_given_once_and_a_message_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="shape box") as caught:
        parse(text, SHAPES)
    assert "\n" not in str(caught.value)


PIECES = st.sampled_from(
    ["0.1", "1", "-4", "nan", "inf", "x", "", "minimum=2", "every=0", "width=3", "noise=2", "=", "²"]
)
TEXTS = st.builds(
    lambda name, words: name + "".join(mark + word for mark, word in words),
    st.sampled_from([*EXITS, *DECODERS, "latnt", ""]),
    st.lists(st.tuples(st.sampled_from([":", ",", ",", "="]), PIECES), max_size=4),
)


@pytest.mark.parametrize("registry", [EXITS, DECODERS, SHAPES], ids=lambda registry: registry.kind)
@given(text=TEXTS | st.text(max_size=20))
@example(text="speculate:4:16:4")
@example(text="adaptive:adaptive:latent:0.1")
def test_whatever_is_written_is_read_or_refused_in_one_line(registry: Registry[type], text: str) -> None:
    """No text makes another error, which would show a traceback on the command line."""
    try:
        thing = parse(text, registry)
    except ValueError as error:
        assert str(error) and ("\n" not in str(error) or "\n" in text)
    else:
        assert type(thing) in registry.values()
