"""A model of mull as a solver: what is forked, cut and gone on with is what would have been written otherwise, nothing
is read twice, and every token is counted."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mull
from mull.inference.session import Session
from mull.inference.strategies import Branch, Line, Manner, Marks
from mull.inference.strategies.folder import FolderSolver
from mull.inference.strategies.reading import Memory
from mull.inference.strategies.solver import seed_of
from mull.inference.strategies.spelling import Spelling
from mull.models import LanguageModel

Make = Callable[..., LanguageModel]
WAYS = [
    ("recurrent", None),
    ("recurrent", "latent:0.3"),
    ("convolved", None),
    ("inner_thinking", None),
    ("transformer", None),
]
PLAIN = [way for way in WAYS if way[0] not in ("inner_thinking", "convolved")]
DRAWN = Manner(temperature=1.0, limit=18)
PROMPT = "1 + 2 <chain>"


def forgotten(branch: Branch) -> Branch:
    """The same branch, of which nothing was read."""
    return replace(branch, memory=Memory(branch.memory.ids, meter=branch.memory.meter))


def same(one: Branch, other: Branch) -> bool:
    """Token by token: texts and counts equal, chances and residuals to rounding."""
    pairs = list(zip(one.tokens, other.tokens, strict=True))
    exact = all((a.text, a.id, a.drawn, a.iterations) == (b.text, b.id, b.drawn, b.iterations) for a, b in pairs)
    return exact and one.ended == other.ended and all(
        a.log_probability == pytest.approx(b.log_probability, abs=1e-9)
        and (a.residual == b.residual is None or a.residual == pytest.approx(b.residual, rel=1e-6))
        for a, b in pairs
    )  # fmt: skip


@pytest.mark.parametrize(("family", "exit"), WAYS)
def test_what_is_forked_is_what_is_read_anew(make_writer: Make, family: str, exit: str | None) -> None:
    """Guards forks at a mark: copies of all sorts of lengths go on together as each would with its text read anew."""
    solver, manner = FolderSolver(make_writer(family)), replace(DRAWN, exit=exit)
    begun = solver.write([solver.begin(PROMPT, (3,))] * 5, manner, until=["<step>"])
    assert len({len(branch.tokens) for branch in begun}) > 2 and len({branch.text for branch in begun}) == 5
    going, read = solver.write(begun, manner), solver.meter.spent.read
    for one, whole in zip(begun, going, strict=True):
        [anew] = solver.write([forgotten(one)], manner)
        assert same(anew, whole)
    assert solver.meter.spent.read > read + 5 * len(solver.begin(PROMPT).memory.ids)  # that is what was saved


@pytest.mark.parametrize(("family", "exit"), WAYS)
def test_what_is_rolled_back_and_replayed_was_never_searched(make_writer: Make, family: str, exit: str | None) -> None:
    """Guards cuts: after wandering off from every length of a text, the text goes on as if nothing had happened."""
    solver, manner = FolderSolver(make_writer(family)), replace(DRAWN, exit=exit)
    [straight] = solver.write([solver.begin(PROMPT, (5,))], manner)
    for length in (0, 1, len(straight.tokens) // 2, len(straight.tokens) - 1):
        back = solver.cut(solver.cut(straight, min(length + 2, len(straight.tokens))), length)
        astray = solver.append([back], "<wait> 7")
        solver.write([*astray, back.again(1), back.again(2)], replace(manner, limit=length + 5))
        assert same(solver.write([back], manner)[0], straight)


@pytest.mark.parametrize(("family", "exit"), [way for way in WAYS if way[0] != "convolved"])
def test_a_draw_depends_on_seed_and_branch_and_on_nothing_beside_it(
    make_writer: Make, family: str, exit: str | None
) -> None:
    """Guards the key of draws: batch size and order change nothing, and the copies of a branch differ."""
    model, manner = make_writer(family), replace(DRAWN, exit=exit, limit=10)

    def written(batch_size: int, backwards: bool) -> list[Branch]:
        solver = FolderSolver(model, batch_size=batch_size)
        ways = [solver.begin(PROMPT, (1,)), solver.begin("1 <draft>", (1,)), solver.begin(PROMPT, (3,))]
        found = solver.write(ways[::-1] if backwards else ways, manner)
        return found[::-1] if backwards else found

    first = written(64, False)
    assert all(map(same, first, written(1, False))) and all(map(same, first, written(2, True)))
    solver = FolderSolver(model)
    copies = solver.write([solver.begin(PROMPT, (1,))] * 5, manner)
    assert same(copies[0], first[0]) and len({branch.text for branch in copies}) == 5


def test_a_greedy_text_is_that_of_generate(make_writer: Make) -> None:
    """Guards the loop of its own against the library's: the same tokens to the same end."""
    model = make_writer(seed=2)
    for prompt in ("1 + 2 <chain>", "4 = 9 <draft>", "7 <direct>"):
        solver = FolderSolver(model)
        [branch] = solver.write([solver.begin(prompt)], Manner(iterations=4, limit=16))
        ids = list(solver.begin(prompt).memory.ids)
        expected = mull.generate(model, [ids], 4, max_new_tokens=16)
        assert [token.id for token in branch.tokens] == expected.new_tokens[0].tolist()


def test_a_drawn_text_is_that_of_generate_with_the_same_chance(make_writer: Make) -> None:
    """Guards sampling with its filters: each token is what generate draws from a generator of that key and place."""
    model, solver = make_writer(), FolderSolver(make_writer())
    filters = {"temperature": 1.3, "top_k": 9, "top_p": 0.9}
    [branch] = solver.write([solver.begin(PROMPT, (8, 1))], Manner(limit=12, **filters))  # type: ignore[arg-type]
    ids = list(solver.begin(PROMPT).memory.ids)
    for place, token in enumerate(branch.tokens):
        chance = torch.Generator().manual_seed(seed_of((8, 1), place))
        one = mull.generate(model, [ids], max_new_tokens=1, generator=chance, **filters)  # type: ignore[arg-type]
        assert token.id == int(one.new_tokens[0, 0])
        ids.append(token.id)


def test_another_depth_is_read_anew_and_the_first_is_kept(make_writer: Make) -> None:
    """Guards caches against keys of another depth, and a text that is thought about at two depths in turn."""
    solver = FolderSolver(make_writer(n_core=3, n_coda=2))  # whose text is not over by then
    [begun] = solver.write([solver.begin(PROMPT)], Manner(iterations=2, limit=6))
    deep = solver.write([begun], Manner(iterations=7, limit=12))[0]
    assert same(solver.write([forgotten(begun)], Manner(iterations=7, limit=12))[0], deep)
    before = solver.meter.spent.read
    solver.write([begun], Manner(iterations=2, limit=7))
    assert solver.meter.spent.read == before + 1  # its last token, and nothing else


# ------------------------------------------------------------------------------------------------------------ the meter


@pytest.mark.parametrize(("family", "exit"), PLAIN)
@pytest.mark.parametrize("window", [0, 3])
def test_the_meter_agrees_with_the_counter_within_one_percent(
    make_writer: Make, family: str, exit: str | None, window: int
) -> None:
    """Guards every way FLOPs come about: a prompt read once for five forks, tokens one by one, a text put there, a cut.
    No token ends a row here, so that all rows are equally long, as the counter's padded rows are."""
    model = make_writer(family, stop_tokens=(), window=window)
    solver, manner = FolderSolver(model), replace(DRAWN, exit=exit, limit=9)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        five = solver.write([solver.begin("1 + 2 + 3 + 4 <chain>", (1,))] * 5, manner)
        longer = solver.append([solver.cut(branch, 6) for branch in five], "<wait> 7 7")
        solver.write(longer, replace(manner, limit=14))
    assert solver.meter.spent.flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    prompt = len(five[0].memory.ids) - 9
    assert (
        solver.meter.spent.read == prompt + 5 * 8 + 5 * 4 + 5 * 4
    )  # the last of the six is read again, see Memory.cut
    assert solver.meter.spent.tokens == 5 * 9 + 5 * 5 and solver.meter.spent.calls == 10


def test_answers_that_are_looked_at_behind_a_window_are_billed_what_they_cost(make_writer: Make) -> None:
    """Guards looks of an exit rule through a coda of layers, which attends: far more is held than its window shows."""
    model = make_writer("recurrent", stop_tokens=(), window=3, n_coda=2, max_length=600)
    solver, manner = FolderSolver(model), Manner(limit=8, exit="kl:1e-9")
    read = solver.write([solver.begin(" ".join(["1 +"] * 200) + " 2 <chain>")], replace(manner, limit=1))
    before = solver.meter.spent.flops
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        solver.write(read, manner)
    assert solver.meter.spent.flops - before == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_meter_counts_the_tokens_that_routed_passes_took(make_writer: Make) -> None:
    """Guards inner thinking, whose cost is that of the tokens that went: at most what all tokens would have cost."""
    solver = FolderSolver(make_writer("inner_thinking", stop_tokens=()))
    solver.write([solver.begin(PROMPT)], Manner(limit=8))
    config = solver.model.config
    most = 5 * config.flops_per_token(3, 5, 1.0) + sum(config.flops_per_token(3, end, 1.0) for end in range(6, 13))
    least = 5 * config.flops_per_token(3, 5, 0.0) + sum(config.flops_per_token(3, end, 0.0) for end in range(6, 13))
    assert least < solver.meter.spent.flops < most


# ---------------------------------------------------------------------------------------------------------- the rewards


@pytest.fixture(params=PLAIN, ids=str)
def rewarded(make_writer: Make, request: pytest.FixtureRequest) -> tuple[FolderSolver, Manner]:
    """A solver whose model has a reward head, and the manner of writing."""
    family, exit = request.param
    return FolderSolver(make_writer(family, value_head=True)), replace(DRAWN, exit=exit)


def test_rewards_are_those_of_the_text_read_anew(rewarded: tuple[FolderSolver, Manner]) -> None:
    """Guards what is kept on the way: after forks, cuts and texts put there, at the depth of writing and at another,
    the reward at any length is that of reading the text from its beginning."""
    solver, usual = rewarded
    begun = solver.write([solver.begin(PROMPT, (2,))] * 3, usual, until=["<step>"])
    going = solver.write(solver.append(begun, "<wait> 1"), usual)
    looped = solver.model.config.default_iterations is not None
    for manner in (usual, replace(usual, iterations=6)) if looped else (usual,):
        for branch in going:
            for length in (1, len(branch.tokens) // 2, len(branch.tokens)):
                part = solver.cut(branch, length)
                session = Session(solver.model, 1, 64, *solver.depth(manner))
                value = session.think(torch.tensor([branch.memory.ids[: len(part.memory.ids)]])).value
                expected = torch.sigmoid(value[0, -1]).item()
                assert solver.score([part], manner) == [pytest.approx(expected, abs=1e-9)]


def test_a_reward_costs_what_was_not_read_yet(rewarded: tuple[FolderSolver, Manner]) -> None:
    """Guards the scorer's bill: the last token of a step, and of what has been read already nothing."""
    solver, manner = rewarded
    [branch] = solver.write([solver.begin(PROMPT)], replace(manner, limit=8))
    before = solver.meter.spent
    with solver.meter.scoring():
        solver.score([branch], manner)
    first = solver.meter.spent - before
    assert (first.read, first.calls) == (1, 1) and first.scorer_flops == first.flops > 0
    solver.score([branch, *(solver.cut(branch, length) for length in range(1, len(branch.tokens)))], manner)
    assert solver.meter.spent - before == first
    solver.write([branch], replace(manner, limit=9))
    assert (solver.meter.spent - before).read == 1  # the token that the scorer has read is at hand


# ---------------------------------------------------------------------------------------------------------------- texts


def test_hooks_see_lines_and_have_the_last_word(make_writer: Make) -> None:
    """Guards both hooks: `before` changes what is drawn from, `after` what is written, and the chance that is kept is
    that of the model itself."""
    solver, seen = FolderSolver(make_writer()), list[int]()

    def before(_: object, logits: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(logits.shape[1]) == 5, 100.0, logits)

    def after(line: Line, token: int) -> int:
        seen.append(len(line.tokens))
        return 6 if len(line.tokens) == 2 else token

    [branch] = solver.write([solver.begin(PROMPT)], Manner(limit=5), before=before, after=after)
    assert [token.id for token in branch.tokens] == [5, 5, 6, 5, 5] and seen == [0, 1, 2, 3, 4]
    logits = solver.model(torch.tensor([branch.memory.ids])).logits[0].detach().log_softmax(-1)
    start = len(branch.memory.ids) - 5
    expected = [float(logits[start - 1 + place, token.id]) for place, token in enumerate(branch.tokens)]
    assert [token.log_probability for token in branch.tokens] == pytest.approx(expected, abs=1e-9)


def test_text_is_spelled_the_same_way_back(make_writer: Make) -> None:
    """Guards marks in tokenizers of both kinds: words between blanks, and bytes with control tokens among them."""
    words = Spelling(make_writer().tokenizer, Marks())
    text = "1 + 2 <chain> 3 <step> </think> 3"
    ids = words.encoded(text, opening=True)
    assert "".join(words.piece(ids[:at], token) for at, token in enumerate(ids)).strip() == text
    made = Tokenizer(
        BPE({symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<chain>", "<step>"])
    few = Spelling(made, Marks())
    text = "é = 2<chain> one two\n<step><step> three"
    ids = few.encoded(text, opening=True)
    assert "".join(few.piece(ids[:at], token) for at, token in enumerate(ids)) == text
    assert ids.count(few.ids["<step>"]) == 2
    with pytest.raises(ValueError, match="no token <wait>, so it was trained without it; its marks are <chain> <step>"):
        few.encoded("1 <wait>", opening=False)
    assert {few.random((seed,)) for seed in range(40)} & {"<chain>", "<step>"} == set()


def test_what_cannot_be_written_is_refused_in_one_line(make_writer: Make) -> None:
    """Guards people who have another model, a longer text or another mark."""
    model = make_writer(max_length=16)
    solver = FolderSolver(model)
    [full] = solver.write([solver.begin(PROMPT)], Manner(limit=99))
    assert solver.room(full) == 0 and full.ended and len(full.memory.ids) == 16
    for action, says in (
        (lambda: solver.begin("1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 <chain>"), "max_length is 16"),
        (lambda: solver.begin("x <chain>"), "unknown symbol 'x'"),
        (lambda: solver.append([solver.cut(full, 9)], "<wait> 1 2 3"), "needs 4 tokens and there is room for 2"),
        (lambda: solver.cut(full, 99), "cannot be cut to 99"),
        (lambda: solver.write([solver.begin(PROMPT)], DRAWN, until=["<stop>"]), "no token <stop>"),
        (lambda: solver.score([full], DRAWN), "the model has no reward head; train one with value_head: true"),
        (lambda: Manner(limit=0), "a limit of 0 tokens leaves no room for an answer"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            action()
        assert "\n" not in str(error.value)
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        FolderSolver(model)
    plain = Tokenizer(BPE({"a": 0}, []))
    model.tokenizer = plain
    with pytest.raises(ValueError, match="no <chain>: it was trained without traces"):
        FolderSolver(model)
