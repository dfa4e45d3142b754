"""Sessions: whatever is read, forked and cut, a row answers like a text that was read once, from its beginning."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mull.inference.early_exit import think_until
from mull.inference.exits import parse
from mull.inference.session import Answer, Session
from mull.models import LanguageModel
from mull.models.families import FAMILIES

MakeModel = Callable[..., LanguageModel]
LIMIT = 6
HOWS: list[dict[str, Any]] = [
    {},
    {"policy": "deepest"},
    {"policy": "shared"},
    {"policy": "shared", "ring": 3},
    {"warm_start": True},
    {"warm_start": True, "policy": "shared"},
    {"exit": "latent:0.3"},
    {"exit": "acceleration:0.4", "policy": "shared"},
    {"exit": "kl:0.05", "warm_start": True},
]


def ids_of(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


def same(one: Answer, other: Answer) -> None:
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.state, other.state, rtol=1e-10, atol=1e-10)
    assert torch.equal(one.iterations, other.iterations)


def anew(model: LanguageModel, *parts: Tensor, iterations: Any = LIMIT, **how: Any) -> Answer:
    """The answer of a session of its own that reads the parts one after another."""
    session = Session(model, len(parts[0]), 32, iterations, **how)
    for part in parts[:-1]:
        session.read(part)
    return session.read(parts[-1])


@pytest.fixture(params=HOWS, ids=str)
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture
def model(make_model: MakeModel) -> LanguageModel:
    return make_model("recurrent")


def test_a_fork_is_a_text_read_anew(model: LanguageModel, how: dict[str, Any]) -> None:
    """Rows in another order, one of them twice; what one reads the other does not see."""
    prompt, more = ids_of(3, 5), ids_of(4, 2, seed=1)
    session = Session(model, 3, 32, LIMIT, **how)
    session.read(prompt)
    fork = session.fork([2, 0, 2, 1])
    assert fork.lengths == [5] * 4 and session.lengths == [5] * 3
    rows = prompt[[2, 0, 2, 1]]
    same(fork.read(more[:, :1]), anew(model, rows, more[:, :1], **how))
    same(session.read(more[:3, 1:]), anew(model, prompt, more[:3, 1:], **how))
    same(fork.read(more[:, 1:]), anew(model, rows, more[:, :1], more[:, 1:], **how))
    assert fork.lengths == [7] * 4 and session.lengths == [6] * 3


def test_a_fork_of_a_fork_is_one_too(model: LanguageModel, how: dict[str, Any]) -> None:
    prompt, more = ids_of(2, 4), ids_of(2, 3, seed=1)
    session = Session(model, 2, 32, LIMIT, **how)
    session.read(prompt)
    child = session.fork(torch.tensor([1, 0, 0]))
    child.read(more[[0, 1, 0], :1])
    grandchild = child.fork([2, 1])
    child.read(more[[0, 1, 0], 2:])
    same(grandchild.read(more[:, 1:2]), anew(model, prompt[[0, 0]], more[[0, 1], :1], more[:, 1:2], **how))


@pytest.mark.parametrize("how", [how for how in HOWS if not how.get("warm_start")], ids=str, indirect=True)
def test_what_is_cut_was_never_read(model: LanguageModel, how: dict[str, Any]) -> None:
    """Whole rows back to where the prompt ended: the rest of the text is read as if nothing had stood there."""
    prompt, wrong, right = ids_of(3, 5), ids_of(3, 4, seed=1), ids_of(3, 2, seed=2)
    session = Session(model, 3, 32, LIMIT, **how)
    session.read(prompt)
    session.read(wrong)
    session.cut([5, 5, 5])
    assert session.lengths == [5] * 3
    same(session.read(right), anew(model, prompt, right, **how))


@pytest.mark.parametrize("how", [how for how in HOWS if not how.get("warm_start")], ids=str, indirect=True)
def test_rows_are_cut_to_lengths_of_their_own(model: LanguageModel, how: dict[str, Any]) -> None:
    """Into what a call has read, too: each row goes on behind its own part of it, as it would alone."""
    prompt, more = ids_of(3, 7), ids_of(3, 2, seed=1)
    lengths = [7, 3, 5]
    session = Session(model, 3, 32, LIMIT, **how)
    session.read(prompt)
    session.cut(lengths)
    assert session.lengths == lengths and session.room == 25
    together = session.read(more)
    for row, length in enumerate(lengths):
        alone = anew(model, prompt[row : row + 1, :length], more[row : row + 1], **how)
        same(Answer(*(part[row : row + 1] for part in together)), alone)


def test_padding_on_either_side_is_not_read(model: LanguageModel, how: dict[str, Any]) -> None:
    """The answer is that behind the last token of each row, wherever it stands, in the first call and later ones."""
    parts, masks = [ids_of(3, 6), ids_of(3, 3, seed=1)], [torch.ones(3, 6), torch.ones(3, 3)]
    masks[0][1, :4] = masks[0][2, 4:] = masks[1][0, :2] = masks[1][1, 1:] = 0
    session = Session(model, 3, 32, LIMIT, **how)
    answers = [session.read(part, mask) for part, mask in zip(parts, masks, strict=True)]
    assert session.lengths == [7, 3, 7]
    for row in range(3):
        own = [part[row, mask[row].bool()][None] for part, mask in zip(parts, masks, strict=True)]
        for count in (1, 2):
            alone = anew(model, *own[:count], **how)
            same(Answer(*(part[row : row + 1] for part in answers[count - 1])), alone)


def test_counts_stay_with_their_rows(model: LanguageModel) -> None:
    """Also when the deepest row is left behind, or comes twice."""
    prompt, more, counts = ids_of(4, 5), ids_of(3, 2, seed=1), torch.tensor([1, 6, 3, 2])
    session = Session(model, 4, 32, counts)
    assert session.read(prompt).iterations.tolist() == [1, 6, 3, 2]
    for rows in ([3, 0, 2], [1, 1, 0], [2, 3, 3]):
        fork = session.fork(rows)
        fork.read(more[:, :1])
        fork.cut([5, 6, 5])
        answer = fork.read(more[:, 1:])
        assert answer.iterations.tolist() == counts[rows].tolist()
        for place, row in enumerate(rows):
            own = [prompt[row : row + 1], more[place : place + 1, :1], more[place : place + 1, 1:]]
            own = own if place == 1 else [own[0], own[2]]
            alone = anew(model, *own, iterations=int(counts[row]))
            same(Answer(*(part[place : place + 1] for part in answer)), alone)


def test_a_warm_start_begins_where_the_last_position_came_to(model: LanguageModel) -> None:
    """After one read: from the state of its last position, which forks take along. Without: from the model's start."""
    prompt, more = ids_of(2, 4), ids_of(2, 1, seed=1)
    session = Session(model, 2, 32, LIMIT, warm_start=True)
    state = session.read(prompt).state
    cache = model.new_cache(2, 32)
    with torch.no_grad():
        model(prompt, LIMIT, cache=cache)
        expected = model(more, LIMIT, cache=cache, state=state[:, None])
    answer = session.fork([0, 1]).read(more)
    torch.testing.assert_close(answer.logits, expected.logits[:, -1], rtol=1e-10, atol=1e-10)
    same(session.read(more), answer)
    assert not torch.allclose(answer.logits, anew(model, prompt, more).logits)


def test_a_warm_start_goes_on_behind_what_think_has_read(model: LanguageModel) -> None:
    """As behind a read, of rows of their own lengths; a row without a token would have no state to go on from."""
    prompt, more, mask = ids_of(2, 4), ids_of(2, 1, seed=1), torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    read, thought = (Session(model, 2, 32, LIMIT, warm_start=True) for _ in range(2))
    read.read(prompt, mask)
    thought.think(prompt, mask)
    same(thought.read(more), read.read(more))
    with pytest.raises(ValueError, match="row 1 is empty"):
        thought.think(more, torch.tensor([[1], [0]]))


def test_rows_that_think_reads_may_have_no_token(model: LanguageModel) -> None:
    prompt, more = ids_of(2, 4), ids_of(2, 2, seed=1)
    session = Session(model, 2, 32, LIMIT)
    session.read(prompt)
    session.think(more, torch.tensor([[1, 1], [0, 0]]))
    assert session.lengths == [6, 4]


@pytest.mark.parametrize("text", ["latent:0.3", "acceleration:0.4", "fixed:2", "kl:0.05"])
def test_an_exit_session_thinks_until_the_rule_says_so(model: LanguageModel, text: str) -> None:
    """As `think_until` does in one call, and positions do leave at different counts."""
    ids = ids_of(6, 7)
    answer = Session(model, 6, 32, LIMIT, exit=text).read(ids)
    whole = think_until(model, ids, LIMIT, parse(text))
    torch.testing.assert_close(answer.logits, whole.logits[:, -1], rtol=1e-10, atol=1e-10)
    assert torch.equal(answer.iterations, whole.iterations[:, -1])
    assert text == "fixed:2" or len(whole.iterations.unique()) > 1, "everything left at once, which shows nothing"


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15)
@given(data=st.data())
def test_any_program_of_reads_forks_and_cuts_answers_like_the_model(
    make_model: MakeModel, family: str, data: st.DataObject
) -> None:
    """The twin keeps rows as lists of tokens, and asks the model about all of each from its beginning."""
    model = make_model(family, data.draw(st.integers(0, 3)))
    count = None if model.config.default_iterations is None else data.draw(st.integers(1, 4))
    texts: list[list[int]] = [[] for _ in range(data.draw(st.integers(1, 3)))]
    session = Session(model, len(texts), 32, count)
    for _ in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["read", "read", "fork", "cut"]))
        if kind == "fork":
            rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4))
            session, texts = session.fork(rows), [list(texts[row]) for row in rows]
        elif kind == "cut":
            lengths = [data.draw(st.integers(0, len(text))) for text in texts]
            session.cut(lengths)
            texts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
        elif session.room:
            width = data.draw(st.integers(1, min(4, session.room)))
            tokens = ids_of(len(texts), width, data.draw(st.integers(0, 99)))
            mask = torch.ones_like(tokens)
            for row in range(len(texts)):
                start = data.draw(st.integers(0, width - 1))
                mask[row, :start] = mask[row, data.draw(st.integers(start + 1, width)) :] = 0
                texts[row] = texts[row] + tokens[row, mask[row].bool()].tolist()
            answer = session.read(tokens, mask if data.draw(st.booleans()) or not mask.all() else None)
            for row, text in enumerate(texts):
                with torch.no_grad():
                    whole = model(torch.tensor([text]), count)
                torch.testing.assert_close(answer.logits[row], whole.logits[0, -1], rtol=1e-9, atol=1e-9)
                assert answer.iterations[row] == whole.iterations[0, -1]
        assert session.lengths == [len(text) for text in texts]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_forked_and_cut(make_model: MakeModel, family: str) -> None:
    """At the model's own count and in the mode that it is in, which stays."""
    model = make_model(family).train()
    prompt, more = ids_of(2, 5), ids_of(2, 1, seed=1)
    session = Session(model, 2, 32)
    session.read(prompt)
    fork = session.fork([1, 1])
    fork.read(more)
    fork.cut([5, 5])
    same(fork.read(more), anew(model, prompt[[1, 1]], more, iterations=None))
    assert model.training and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "transformer",
            {"warm_start": True},
            "warm_start needs a model with a core that is iterated, not a Transformer",
        ),
        ("transformer", {"exit": "latent:0.1"}, "exit 'latent' needs a model with a core that is iterated"),
        ("recurrent", {"exit": "gate:0.1"}, "exit 'gate' needs a model with an exit gate: train with exit_gate: true"),
        ("recurrent", {"exit": "latnt:0.1"}, "exit 'latnt' is not known; known are latent, "),
        ("recurrent", {"capacity": 0.5}, "has no routed passes: capacity=0.5 is refused, leave it out"),
        ("recurrent", {"policy": "some"}, "policy must be one of full, deepest, shared, not 'some'"),
        ("recurrent", {"ring": 0}, "ring must be at least 1, not 0"),
        ("recurrent", {"cache_dtype": torch.int64}, "a cache keeps floating-point numbers of 16 bits or more"),
        ("recurrent", {"cache_dtype": torch.float8_e4m3fn}, "not torch.float8_e4m3fn"),
        ("recurrent", {"max_length": 33}, "max_length 33 is more than the model's limit of 32 positions"),
    ],
)
def test_what_a_model_cannot_follow_is_refused_when_the_session_is_made(
    make_model: MakeModel, family: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Session(make_model(family), 1, **{"max_length": 8, **options})
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused_and_changes_nothing(model: LanguageModel) -> None:
    prompt, more = ids_of(2, 5), ids_of(2, 1, seed=1)
    session = Session(model, 2, 6, LIMIT)
    session.read(prompt)
    with pytest.raises(ValueError, match="the cache holds 6 positions and 7 are needed"):
        session.read(ids_of(2, 2))
    with pytest.raises(ValueError, match="row 1 holds 5 positions and cannot be cut to 6"):
        session.cut([5, 6])
    with pytest.raises(ValueError, match="the cache holds 2 sequences, input_ids has 1"):
        session.read(ids_of(1, 1))
    assert session.lengths == [5, 5] and session.room == 1
    same(session.read(more), anew(model, prompt, more))


def test_a_session_that_starts_warm_cannot_be_cut(model: LanguageModel) -> None:
    """Only the state of the last position is kept; a cut that changes nothing is none."""
    prompt, more = ids_of(2, 5), ids_of(2, 1, seed=1)
    session = Session(model, 2, 32, LIMIT, warm_start=True)
    session.read(prompt)
    session.cut([5, 5])
    with pytest.raises(ValueError, match="a session with warm_start cannot be cut"):
        session.cut([5, 4])
    same(session.read(more), anew(model, prompt, more, warm_start=True))


def test_an_exit_rule_is_refused_with_a_cache_of_one_depth(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="policy deepest or shared, not full"):
        Session(model, 1, 8, exit="latent:0.3", policy="full")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda session: session.fork([2]), "no row 2: .*2 rows"),
        (lambda session: session.fork([-1]), "no row -1: .*2 rows"),
        (lambda session: session.cut([5]), "1 .*2 rows"),
        (lambda session: session.fork([]), "no row; give at least one"),
        (lambda session: session.fork(torch.tensor([True, False])), "numbers of rows, not a mask"),
        (lambda session: session.read(ids_of(2, 2), torch.tensor([[1, 1], [0, 0]])), "row 1 .*empty"),
    ],
)
def test_rows_that_are_not_there_are_named(
    model: LanguageModel, wrong: Callable[[Session], object], message: str
) -> None:
    session = Session(model, 2, 32, LIMIT)
    session.read(ids_of(2, 5))
    with pytest.raises(ValueError, match=message):
        wrong(session)


@pytest.mark.parametrize("how", [{}, {"exit": "latent:0.3"}, {"policy": "deepest"}], ids=str)
def test_rows_of_several_sessions_go_on_as_each_would(model: LanguageModel, how: dict[str, Any]) -> None:
    """Guards texts that were written apart and go on together, cut to any lengths, while the sessions that they come
    from stay as they were."""
    first, second = Session(model, 2, 32, LIMIT, **how), Session(model, 1, 32, LIMIT, **how)
    long, short, more = ids_of(2, 9), ids_of(1, 5, seed=1), ids_of(4, 3, seed=2)
    first.read(long)
    second.read(short)
    joined = Session.gathered([(second, 0), (first, 1), (first, 0), (second, 0)])
    joined.cut([5, 4, 9, 2])
    rows = [short[0], long[1, :4], long[0], short[0, :2]]
    together = joined.read(more)
    for row, begun in enumerate(rows):
        alone = anew(model, begun[None], more[row : row + 1], **how)
        same(Answer(*(part[row : row + 1] for part in together)), alone)
    same(first.read(more[:2]), anew(model, long, more[:2], **how))


def test_rows_of_their_own_counts_are_joined(model: LanguageModel) -> None:
    """Each keeps its count, also where it stood elsewhere, and where the deepest row of its session stays behind."""
    prompts, more = ids_of(4, 5), ids_of(3, 2, seed=1)
    one, other = Session(model, 2, 32, torch.tensor([2, 5])), Session(model, 2, 32, torch.tensor([6, 1]))
    one.read(prompts[:2])
    other.read(prompts[2:])
    joined = Session.gathered([(other, 1), (one, 0), (one, 1)])
    answer = joined.read(more)
    for place, (row, count) in enumerate([(3, 1), (0, 2), (1, 5)]):
        alone = anew(model, prompts[row : row + 1], more[place : place + 1], iterations=count)
        same(Answer(*(part[place : place + 1] for part in answer)), alone)


def test_passes_of_inner_thinking_are_joined_where_their_counts_are_one(make_model: MakeModel) -> None:
    """They begin together: rows of other counts would read the keys of other passes."""
    model = make_model("inner_thinking")
    prompts, more = ids_of(2, 5), ids_of(2, 1, seed=1)

    def begun(counts: Any) -> list[Session]:
        sessions = [Session(model, 2, 32, counts) for _ in range(2)]
        for session in sessions:
            session.read(prompts)
        return sessions

    one, other = begun(3)
    same(Session.gathered([(other, 0), (one, 1)]).read(more), anew(model, prompts, more, iterations=3))
    one, other = begun(torch.tensor([3, 3]))
    same(Session.gathered([(other, 0), (one, 1)]).read(more), anew(model, prompts, more, iterations=3))
    one, other = (each.fork([0]) for each in begun(torch.tensor([2, 4])))  # of one count, beside keys of deeper rows
    with pytest.raises(ValueError, match="inner thinking cannot be joined where their counts differ"):
        Session.gathered([(one, 0), (other, 0)])
    one, other = begun(torch.tensor([2, 4]))
    with pytest.raises(ValueError, match="inner thinking cannot be joined where their counts differ"):
        Session.gathered([(one, 0), (other, 1)])


def test_rows_that_are_begun_anew_take_as_many_passes_as_they_ask_for(make_model: MakeModel) -> None:
    """The deepest row of a session stays behind, and its passes with it, once nothing is held."""
    model = make_model("inner_thinking")
    session = Session(model, 2, 32, torch.tensor([2, 4]), capacity=(0.5, 0.5, 0.5))
    session.read(ids_of(2, 5))
    fork = session.fork([0])
    same(fork.read(ids_of(1, 1)), session.fork([0]).read(ids_of(1, 1)))
    fork.cut([0])
    same(fork.read(ids_of(1, 5)), anew(model, ids_of(1, 5), iterations=2, capacity=0.5))


def test_rows_of_sessions_that_differ_are_not_joined(model: LanguageModel) -> None:
    """Guards against keys of one depth that would answer for another."""
    sessions = [
        Session(model, 1, 32, LIMIT),
        Session(model, 1, 32, LIMIT + 1),
        Session(model, 1, 32, LIMIT, "latent:0.3"),
        Session(model, 1, 32, torch.tensor([LIMIT])),
    ]
    sessions.append(Session(model, 1, 32, LIMIT, warm_start=True))
    for session in sessions:
        session.read(ids_of(1, 3))
    for other in sessions[1:]:
        with pytest.raises(ValueError, match=r"sessions that differ in model, depth or exit rule|warm_start"):
            Session.gathered([(sessions[0], 0), (other, 0)])
