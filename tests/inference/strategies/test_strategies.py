"""What each strategy does, exactly: with one text it is plain writing, and with a written-down writer its choice is the
one that can be worked out by hand."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mull
from mull.inference.exits import Latent
from mull.inference.strategies import STRATEGIES, Branch, Line, Manner, Marks, Problem, Token, choose_strategy
from mull.inference.strategies.choosing import Candidate, choose
from mull.inference.strategies.folder import FolderSolver
from mull.inference.strategies.meter import Cost
from mull.inference.strategies.scorers import SCORERS, Judged, choose_scorer, steps_of
from mull.inference.strategies.solver import seed_of
from mull.inference.strategies.thought_switching import Penalty
from mull.models import LanguageModel

Make = Callable[..., LanguageModel]
ONE = [
    "majority:1", "best_of_n:1", "best_of_n:1,scorer=settled", "beam:1,width=1", "dvts:1,width=1",
    "lookahead:1,width=1,k=2", "budget_forcing:0,style=chain",
]  # fmt: skip
SEVERAL = [
    "majority:4", "best_of_n:4,choice=vote", "beam:4,width=2", "dvts:4,width=2", "lookahead:2,width=2",
    "budget_forcing:2,cap=9", "self_backtracking:4,rounds=1",
]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- equivalences


@pytest.mark.parametrize("strategy", ONE)
def test_a_strategy_of_one_text_is_plain_writing(make_writer: Make, strategy: str) -> None:
    """Guards every strategy against doing something of its own: one text, greedy, is what generate writes, and drawn it
    is what the chain with the same seed is."""
    model = make_writer(seed=2)
    ids = FolderSolver(model).begin("1 + 2 <chain>").memory.ids
    expected = mull.generate(model, [list(ids)], 4, max_new_tokens=24)
    found = mull.solve(model, "1 + 2", strategy, iterations=4, temperature=0, max_new_tokens=24)
    assert found.text.split() == spelled(model, expected.new_tokens[0].tolist())
    for seed in range(2):
        asked: dict[str, Any] = {"generator": seed, "temperature": 1.0, "max_new_tokens": 16}
        assert mull.solve(model, "1 + 2", strategy, **asked).text == mull.solve(model, "1 + 2", "chain", **asked).text


def spelled(model: LanguageModel, ids: Sequence[int]) -> list[str]:
    return [model.tokenizer.id_to_token(token) for token in ids if token > 1]  # <start> and <end> are no words


@pytest.mark.parametrize("strategy", SEVERAL)
def test_the_same_seed_gives_the_same_answer_whatever_the_batch_size(make_writer: Make, strategy: str) -> None:
    """Guards comparisons that are resumed on another machine: all of a solution but its seconds, and other seeds
    give others."""
    model = make_writer()
    asked: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 16, "iterations": 2}
    ways = ((64, 4), (1, 4), (3, 4), (64, 5))
    found = [
        mull.solve(FolderSolver(model, batch_size=n), "1 + 2", strategy, generator=seed, **asked) for n, seed in ways
    ]
    told = [[(event.what, event.text, event.answer, event.chosen) for event in each.trace] for each in found]
    assert told[0] == told[1] == told[2] != told[3]
    costs = [replace(each.cost, seconds=0.0, flops=0.0) for each in found]
    assert costs[0] == costs[1] == costs[2]
    assert found[0].cost.flops == pytest.approx(found[1].cost.flops) == pytest.approx(found[2].cost.flops)


def test_a_generator_gives_a_seed_each_time(make_writer: Make) -> None:
    """Guards calls in a row: the same generator in the same state gives the same answer, and the next call another."""
    model, chance = make_writer(), torch.Generator().manual_seed(7)
    asked: dict[str, Any] = {"strategy": "chain", "temperature": 1.0, "max_new_tokens": 9}
    first, second = (mull.solve(model, "1 + 2", generator=chance, **asked).text for _ in range(2))
    assert mull.solve(model, "1 + 2", generator=chance.manual_seed(7), **asked).text == first != second


# ------------------------------------------------------------------------------------------------------------- choosing


def candidate(answer: str, path: float, chance: float) -> Candidate:
    return Candidate(Branch("", tokens=(Token(" x", log_probability=chance),)), answer, path)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", ""]), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(-40, -1)),
        min_size=1, max_size=7,
    ),
    st.sampled_from(["max", "vote"]),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_no_choice_depends_on_the_order(given: list[tuple[str, float, int]], how: Any, chance: Any) -> None:
    """Guards ties: whatever comes first, the same answer is chosen, and it is one of largest worth."""
    # chances that differ, and sums of whose powers differ too: no two candidates are alike
    each = [candidate(answer, path, -abs(number) - place / 97) for place, (answer, path, number) in enumerate(given)]
    best = choose(each, how)
    shuffled = list(each)
    chance.shuffle(shuffled)
    assert choose(shuffled, how) is best
    answered = [one for one in each if one.answer] or each
    worth = {a: sum(one.path for one in answered if one.answer == a) for a in {one.answer for one in answered}}
    assert best in answered and (best.path == max(one.path for one in answered) if how == "max" else
                                 worth[best.answer] == max(worth.values()))  # fmt: skip


def test_ties_go_to_the_likelier() -> None:
    """Guards votes of equal size: the answer whose texts are likelier together, and of these the likeliest."""
    unlikely, likely, likelier = (candidate(a, 1.0, c) for a, c in (("a", -9.0), ("b", -3.0), ("b", -2.0)))
    assert choose([unlikely, candidate("a", 1.0, -1.9), likely, likelier], "vote").answer == "b"  # e^-2 + e^-3 > e^-1.9
    assert choose([unlikely, likely, likelier], "max") is likelier
    assert choose([candidate("", 1.0, -0.1), candidate("a", 0.0, -50.0)], "vote").answer == "a"


def test_a_majority_is_that_of_the_answers(scripted: Any) -> None:
    """Guards the vote by hand: three of seven say 4, two 5; a text that does not end its thinking has no vote."""
    ways = ["</think> 5", "</think> 4", "7 7 7", "</think> 4", "</think>  4", "</think> 5", "7 7"]
    solver = scripted({"": [(way, -1.0) for way in ways]})
    found = mull.solve(solver, Problem("?"), "majority:7")
    assert found.answer == "4" and [event.answer for event in found.trace] == ["5", "4", "", "4", "4", "5", ""]
    assert sum(event.chosen for event in found.trace) == 1 and not found.ceiling and found.scorer is None


# -------------------------------------------------------------------------------------------------------------- scorers


def test_scores_are_their_formulas(make_writer: Make) -> None:
    """Guards each score against its line at the head of scorers.py."""
    solver = FolderSolver(make_writer())
    [branch] = solver.write([solver.begin("1 <chain>", (1,))], Manner(temperature=1.0, limit=20))
    [branch] = solver.append([branch], "<wait> <step> 3")
    lengths = steps_of(solver, branch)
    assert lengths[-1] == len(branch.tokens) and len(lengths) > 1
    judged = Judged(Problem("1"), solver, Manner(), "chain")
    drawn = [[t for t in branch.tokens[:length] if t.drawn] for length in lengths]  # what was put there does not count
    [likely] = choose_scorer("log_probability").scores(judged, [branch])
    assert likely == pytest.approx([math.exp(sum(t.log_probability for t in part) / len(part)) for part in drawn])
    [settled] = choose_scorer("settled").scores(judged, [branch])
    residuals = [[t.residual for t in part if t.residual is not None] for part in drawn]
    assert settled == pytest.approx([1 / (1 + sum(part) / len(part)) for part in residuals])
    manner = Manner(exit="fixed:1", limit=4)  # what one iteration moves, from where it begins, tells nothing
    [hasty] = solver.write([solver.begin("1 <chain>", (1,))], manner)
    assert [token.iterations for token in hasty.tokens] == [1] * len(hasty.tokens)
    assert all(token.residual is None for token in hasty.tokens)
    [settled] = choose_scorer("settled").scores(replace(judged, manner=manner), [hasty])
    assert settled and set(settled) == {0}
    chance = [score for copy in range(400) for score in choose_scorer("random").scores(judged, [branch.again(copy)])[0]]
    assert 0 <= min(chance) < 0.02 and 0.98 < max(chance) < 1 and 0.45 < sum(chance) / len(chance) < 0.55


@pytest.mark.parametrize("depth", [2, 5])
def test_a_process_reward_reads_a_text_once(make_writer: Make, depth: int) -> None:
    """Guards the cost of judging at another depth than was written with: up to its last step a text is read once, for
    the scores of all of its steps; at its own depth only what was not read yet. What stands behind is not read."""
    solver = FolderSolver(make_writer(value_head=True))
    [branch] = solver.write([solver.begin("1 <chain>", (1,))], Manner(iterations=2, limit=4))
    [branch] = solver.append([branch], "1 <step> 2 3 <step> </think> 4")
    before, read = solver.meter.spent, len(branch.memory.ids) - len(branch.tokens) + branch.ends("<step>")[-1]
    [scores] = choose_scorer(f"process:{depth}").scores(Judged(Problem("1"), solver, Manner(2), "chain"), [branch])
    spent, written = solver.meter.spent - before, len(branch.memory.ids) - len(branch.tokens) + 3
    assert (spent.read, spent.calls) == (read if depth == 5 else read - written, 1)
    alone = [solver.score([FolderSolver(solver.model).append([solver.begin("1 <chain>")], text)[0]], Manner(depth))[0]
             for text in (solver.cut(branch, end).text for end in branch.ends("<step>"))]  # fmt: skip
    assert scores == pytest.approx(alone)


def test_the_oracle_is_exact_and_always_labelled(scripted: Any) -> None:
    """Guards ceilings against being taken for results: steps by their labels, ends by the checker, and the label in
    trace, solution and JSON."""
    tree = {
        "": [("1 <step>", -1.0), ("2 <step>", -0.5)],
        "1 <step>": [("</think> 4", -1.0)],
        "2 <step>": [("</think> 5", -1.0)],
    }
    solver = scripted(tree)
    problem = Problem("?", check=lambda answer: answer == "4", steps=lambda text: [text.startswith("1")])
    found = mull.solve(solver, problem, "beam:2,width=1,scorer=oracle")
    assert found.answer == "4" and found.ceiling and found.as_dict()["ceiling"] and found.scorer == "oracle"
    assert {event.scorer for event in found.trace} == {"oracle"}
    assert [event.score for event in found.trace if event.what == "step"] == [1.0, 0.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="scorer oracle: it asks the exact checker of answers, and this text has none"):
        mull.solve(solver, "?", "best_of_n:2,scorer=oracle")
    assert not mull.solve(solver, problem, "best_of_n:2").ceiling


# --------------------------------------------------------------------------------------------------------------- search


def a_tree(depth: int, width: int) -> tuple[dict[str, list[tuple[str, float]]], dict[str, float]]:
    """A tree of steps, each another word, whose leaves end; and the score of every beginning."""
    tree: dict[str, list[tuple[str, float]]] = {}
    scores: dict[str, float] = {}
    for length in range(depth + 1):
        for path in product(range(width), repeat=length):
            text = " ".join(f"{word} <step>" for word in path)
            ends = "" if length < depth else "</think> " + "".join(map(str, path))
            tree[text] = [(f"{word} <step>", -1.0 - word) for word in range(width)] if not ends else [(ends, -1.0)]
            scores[text] = scores[f"{text} {ends}".strip()] = seed_of(path, length) / 2**63
    return tree, scores


def by_table(scores: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a scorer that knows the scores by heart, for one test."""
    kind = type(choose_scorer("random"))

    class Table(kind):  # type: ignore[valid-type,misc]
        name = example = "table"

        def prefixes(self, judged: Judged, branch: Branch, lengths: Sequence[int]) -> list[float]:
            return [scores[judged.solver.cut(branch, length).text] for length in lengths]

    monkeypatch.setitem(SCORERS, "table", Table)


def best_of(texts: Sequence[str], scores: dict[str, float], count: int) -> list[str]:
    return sorted(texts, key=lambda text: -scores[text])[:count]


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_beam_search_keeps_the_best_by_the_scorer(scripted: Any, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards beam search against a search by hand of the same tree, three steps deep, three ways each: of N = 3 keep
    beginnings a third is kept, each text once."""
    tree, scores = a_tree(3, 3)
    by_table(scores, monkeypatch)
    kept = best_of([f"{way} <step>" for way in range(3)], scores, keep)
    for _ in range(2):
        kept = best_of([f"{text} {way} <step>" for text in kept for way in range(3)], scores, keep)
    expected = max(kept, key=lambda text: scores[text])
    found = mull.solve(scripted(tree), "?", f"beam:{3 * keep},width=3,scorer=table")
    assert found.answer == "".join(expected.replace("<step>", "").split())


def test_a_beam_that_keeps_everything_finds_the_best_of_all(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the search against losing anything: kept whole, it is brute force over all leaves; and the same tree by
    DVTS, whose trees each begin with every way and keep one."""
    tree, scores = a_tree(2, 3)
    by_table(scores, monkeypatch)
    leaves = [f"{a} <step> {b} <step> </think> {a}{b}" for a in range(3) for b in range(3)]
    found = mull.solve(scripted(tree), "?", "beam:27,width=3,scorer=table")
    assert found.text == max(leaves, key=lambda leaf: scores[leaf])
    first = best_of([f"{a} <step>" for a in range(3)], scores, 1)[0]
    expected = best_of([f"{first} {b} <step>" for b in range(3)], scores, 1)[0]
    assert mull.solve(scripted(tree), "?", "dvts:9,width=3,scorer=table").text.startswith(expected)
    kept = [
        e for e in mull.solve(scripted(tree), "?", "dvts:9,width=3,scorer=table").trace if e.what == "step" and e.chosen
    ]
    assert len([event for event in kept if event.text.count("<step>") == 1]) == 3  # one in each of three trees


@pytest.mark.parametrize("how", ["min", "last", "product"])
def test_paths_are_aggregated_as_asked(scripted: Any, how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards min, last and product by brute force over the leaves: best of all of them by each."""
    tree, scores = a_tree(2, 3)
    by_table(scores, monkeypatch)

    def path(a: int, b: int) -> float:
        parts = [
            scores[f"{a} <step>"],
            scores[f"{a} <step> {b} <step>"],
            scores[f"{a} <step> {b} <step> </think> {a}{b}"],
        ]
        return {"min": min(parts), "last": parts[-1], "product": math.prod(parts)}[how]

    best = max(product(range(3), repeat=2), key=lambda leaf: path(*leaf))
    found = mull.solve(scripted(tree), "?", f"beam:27,width=3,scorer=table,aggregation={how}")
    assert found.answer == "".join(map(str, best))
    same = max(range(3), key=lambda way: path(way, way))  # the i-th copy takes the i-th way everywhere
    assert mull.solve(scripted(tree), "?", f"best_of_n:3,scorer=table,aggregation={how}").answer == f"{same}{same}"


def test_lookahead_scores_where_a_step_leads(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards lookahead: a step that looks well and leads nowhere loses to one that leads well; what it looks at is
    thrown away, and counted as the scorer's. With k = 0 it is beam search."""
    tree = {
        "": [("1 <step>", -1.0), ("2 <step>", -1.0)],
        "1 <step>": [("3 <step>", -1.0)], "2 <step>": [("4 <step>", -1.0)],
        "1 <step> 3 <step>": [("</think> 1", -1.0)], "2 <step> 4 <step>": [("</think> 2", -1.0)],
    }  # fmt: skip
    scores = {"1 <step>": 0.9, "2 <step>": 0.1, "1 <step> 3 <step>": 0.0, "2 <step> 4 <step>": 1.0,
              "1 <step> 3 <step> </think> 1": 0.5, "2 <step> 4 <step> </think> 2": 0.5}  # fmt: skip
    by_table(scores, monkeypatch)
    answers = {k: mull.solve(scripted(tree), "?", f"lookahead:2,width=2,k={k},scorer=table").answer for k in (0, 1)}
    assert answers == {0: "1", 1: "2"}
    assert mull.solve(scripted(tree), "?", "beam:2,width=2,scorer=table").answer == "1"
    model_free = scripted(tree)
    found = mull.solve(model_free, "?", "lookahead:2,width=2,k=1,scorer=table")
    assert [event.text for event in found.trace if event.what == "step"][:2] == ["1 <step>", "2 <step>"]
    asked = 0

    def counted(self: Any, *args: Any, **options: Any) -> list[Branch]:
        nonlocal asked
        asked += 1
        assert asked < 99, "all that is ahead has ended"
        return scripted.write(self, *args, **options)

    writer = type("Counted", (scripted,), {"write": counted})(tree)
    far = mull.solve(writer, "?", "lookahead:2,width=2,k=65536,scorer=table")
    near = mull.solve(scripted(tree), "?", "lookahead:2,width=2,k=2,scorer=table")
    assert (far.answer, far.cost.tokens, far.cost.calls) == (near.answer, near.cost.tokens, near.cost.calls)


# ------------------------------------------------------------------------------------------------------- budget forcing


def first_drawn(solver: FolderSolver, seeds: int, hidden: int | None = None) -> list[int]:
    """The first token behind "1 + 2 <correct>" that each seed draws, of all or of all but one."""
    with torch.no_grad():
        logits = solver.model(torch.tensor([solver.begin("1 + 2 <correct>").memory.ids])).logits[0, -1]
    if hidden is not None:
        logits[hidden] = -math.inf
    p = torch.softmax(logits, -1)
    chances = [torch.Generator().manual_seed(seed_of((seed,), 0)) for seed in range(seeds)]
    return [int(torch.multinomial(p, 1, generator=chance)) for chance in chances]


def test_budget_forcing_acts_after_the_draw(make_writer: Make) -> None:
    """Guards s1's rule against the trap of masking the end of the thinking: where the draw is another token, it stays
    as it is, and where it is the end, the wait stands there; masked, the draw would be yet another one."""
    solver = FolderSolver(make_writer())
    end, wait = solver.spelling.ids["</think>"], solver.spelling.ids["<wait>"]
    drawn, masked = first_drawn(solver, 160), first_drawn(solver, 160, hidden=end)
    forced = [seed for seed, token in enumerate(drawn) if token == end]
    others = [seed for seed, token in enumerate(drawn) if token not in (0, 1, end)][:20]
    for seed in [*forced, *others]:
        found = mull.solve(solver, "1 + 2", "budget_forcing:1", generator=seed, temperature=1.0, max_new_tokens=2)
        assert found.text.split()[0] == ("<wait>" if seed in forced else spelled(solver.model, [drawn[seed]])[0])
    assert len(forced) > 2 and end not in masked and {masked[seed] for seed in forced} != {wait}


def test_budget_forcing_is_its_token_hook(make_writer: Make) -> None:
    """Guards the two rules against the same written as a hook after the draw: at most n ends become waits, and a text
    without an end after `cap` tokens is given one."""
    solver = FolderSolver(make_writer())
    end, wait = solver.spelling.ids["</think>"], solver.spelling.ids["<wait>"]
    with torch.no_grad():
        solver.model.head.weight[end] *= 4  # type: ignore[union-attr,index]  # now and then it is likely
    texts = []
    for waits, cap, seed in product((0, 2), (5,), range(8)):
        found = mull.solve(
            solver,
            "1 + 2",
            f"budget_forcing:{waits},cap={cap}",
            generator=seed,
            temperature=1.0,
            max_new_tokens=12,
            iterations=1,
        )
        assert found.text == by_hook(solver, seed, waits, cap, end, wait)
        texts.append(found.text)
    assert {text.count("<wait>") for text in texts} >= {0, 1, 2} and any(text.find("</think>") > 9 for text in texts)


def by_hook(solver: FolderSolver, seed: int, waits: int, cap: int, end: int, wait: int) -> str:
    """The same text by one call with a hook."""
    left, over, forced, step = [waits], [False], [False], solver.spelling.ids["<step>"]

    def after(line: Line, token: int) -> int:
        if over[0]:
            return token
        if len(line.tokens) >= cap:
            forced[0], token = True, end if line.tokens[-1].id == step else step
        elif token == end and left[0]:
            left[0] -= 1
            return wait
        over[0] = token == end
        return token

    root = solver.begin("1 + 2 <correct>", (seed,))
    text = solver.write([root], Manner(1, temperature=1.0, limit=12), after=after)[0].text
    thought, mark, rest = text.partition("</think>")
    return f"{thought}{mark}{rest.partition('</think>')[0]}".strip() if forced[0] else text


def test_the_controls_of_budget_forcing(make_writer: Make) -> None:
    """Guards `random` and `empty`: another token than a mark in place of the wait; and nothing, so that the end is
    drawn afresh from where it was drawn before."""
    solver = FolderSolver(make_writer())
    ended = [seed for seed, token in enumerate(first_drawn(solver, 400)) if token == solver.spelling.ids["</think>"]]
    assert len(ended) > 5

    def first(strategy: str) -> list[str]:
        asked: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 3}
        found = [mull.solve(solver, "1 + 2", strategy, generator=seed, **asked) for seed in ended]
        return [(each.text.split() or [""])[0] for each in found]  # an end has no text

    random, afresh = first("budget_forcing:1,put=random"), first("budget_forcing:1,put=empty")
    assert set(random) <= set("0123456789+=") and len(set(random)) > 1
    assert len(set(afresh)) > 2 and "</think>" not in afresh and set(first("budget_forcing:0")) == {"</think>"}
    before = solver.meter.spent.read
    mull.solve(solver, "1 + 2", "budget_forcing:1", generator=ended[0], temperature=1.0, max_new_tokens=2)
    assert solver.meter.spent.read == before + len(solver.begin("1 + 2 <correct>").memory.ids) + 1  # the end never


def test_nothing_in_place_of_a_wait_is_another_token_than_the_end(make_writer: Make) -> None:
    """Guards the control against doing nothing: the likeliest token where the thinking ended is its end, so that drawn
    greedily the text would stay as it is, to the letter. One token is held down, and at that place alone."""
    ended = later = 0
    for seed in range(17):
        solver, asked = FolderSolver(make_writer(seed=seed)), {"temperature": 0.0, "max_new_tokens": 24}
        thought, mark, _ = mull.solve(solver, "1 + 2", "budget_forcing:0", **asked).text.partition("</think>")
        if mark:
            longer = mull.solve(solver, "1 + 2", "budget_forcing:1,put=empty", **asked).text
            rest = longer.removeprefix(thought.rstrip()).lstrip()
            assert len(rest) < len(longer) or not thought.strip()
            assert not rest.startswith("</think>")
            ended, later = ended + 1, later + ("</think>" in longer)
    assert ended > 3 and later > 0, (ended, later)


def test_a_thinking_has_the_tokens_that_were_drawn_before_its_end() -> None:
    """Guards the count by hand: a mark that begins within a token, blanks before it, and what was put there."""

    def count(*texts: str, put: Sequence[int] = ()) -> int:
        tokens = tuple(Token(text, drawn=place not in put) for place, text in enumerate(texts))
        return Branch("q", tokens=tokens).thinking("</think>")

    assert count(" 1", " 2", " </think>", " 3") == 2 and count(" 1", " 2") == 2 and count(" </think>", " 3") == 0
    assert count(" 1", " 2", " <step>", " </think>", put=(2, 3)) == 2 and count("1", "<wait>", "2", put=(1,)) == 3
    assert count("1", "2</", "think>", "3") == 2 and count("1", "\n\n", "</think>") == 2 and count() == 0


def test_a_text_that_ended_by_itself_is_not_capped(scripted: Any) -> None:
    """Guards the cap, which is for texts that go on: here the answer ends with the last token that the cap allows."""
    found = mull.solve(scripted({"": [("1 2 3", -1.0)]}), "?", "budget_forcing:1,cap=3")
    assert found.text == "1 2 3" and [event.what for event in found.trace] == ["sample"]
    longer = mull.solve(scripted({"": [("1 2 3", -1.0)], "1 2 3": [("4 4", -1.0)]}), "?", "budget_forcing:1,cap=3")
    assert longer.text.startswith("1 2 3 <step> </think>") and longer.trace[0].what == "cap"


def test_the_twin_on_depth_is_the_exit_rule_with_bounds(make_writer: Make) -> None:
    """Guards least and most: the same text, iterations and FLOPs as under the rule that has them itself."""
    model = make_writer()
    for strategy, exit, iterations in (
        ("budget_forcing:0,style=chain,least=3,most=9", Latent(0.3, minimum=3), 9),
        ("budget_forcing:0,style=chain,most=2", Latent(0.3), 2),
        ("budget_forcing:0,style=chain,least=5", Latent(0.3, minimum=5), 8),
    ):
        forced = mull.solve(model, "1 + 2", strategy, exit="latent:0.3", iterations=8, max_new_tokens=12)
        plain = mull.solve(model, "1 + 2", "chain", exit=exit, iterations=iterations, max_new_tokens=12)
        assert forced.text == plain.text
        assert (forced.cost.iterations, forced.cost.flops) == (plain.cost.iterations, plain.cost.flops)
    with pytest.raises(ValueError, match="least=3 is of an exit rule; give one"):
        mull.solve(model, "1 + 2", "budget_forcing:0,least=3")


# ---------------------------------------------------------------------------------------------------- thought switching


def test_the_penalty_holds_in_its_window_and_nowhere_else() -> None:
    """Guards TIP's formula: alpha off the switch while t < Psi + beta, Psi behind the last switch, nothing else."""
    logits = torch.arange(14.0).view(2, 7)
    for written, beta in product(([], [1], [1, 2], [1, 5], [1, 5, 2], [5, 5, 1, 1, 1]), (0, 1, 2, 3)):
        line = Line(Branch("", tokens=tuple(Token(" x", token) for token in written[:2])))
        line.new = [Token(" x", token) for token in written[2:]]
        began = max((place + 1 for place, token in enumerate(written) if token == 5), default=0)
        expected = logits.clone()
        expected[:, 5] -= 2.5 if len(written) < began + beta else 0.0
        assert torch.equal(Penalty(2.5, beta, frozenset({5}))([line, line], logits), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("alpha", "same"), [(1e300, math.inf), (10**400, math.inf), (1e5, 1e5)], ids=["1e300", "10^400", "1e5"]
)
def test_a_penalty_beyond_the_number_type_is_no_switch(alpha: float, same: float, dtype: torch.dtype) -> None:
    """1e39 is more than fp32 has, and 1e5 more than fp16: what is more than all logits forbids the switch, as inf."""
    logits = torch.arange(7.0, dtype=dtype)[None]
    lines = [Line(Branch(""))]
    found, expected = (Penalty(each, 4, frozenset({5}))(lines, logits) for each in (alpha, same))
    assert torch.equal(found.softmax(-1), expected.softmax(-1)) and found[0, 5] < -9e4
    assert not found[0, [0, 1, 2, 3, 4, 6]].isinf().any()


def test_a_large_penalty_keeps_every_thought_as_long_as_its_window(make_writer: Make) -> None:
    """Guards the hook in the loop: no thought of fewer than beta tokens, and without a penalty there are some."""
    model = make_writer(n_core=3, n_coda=2)  # it switches soon

    def shortest(strategy: str, seed: int) -> int:
        text = mull.solve(model, "1 + 2", strategy, generator=seed, temperature=1.0, max_new_tokens=40).text
        return min(map(len, (thought.split() for thought in text.split("<switch>")[:-1])), default=99)

    for never in ("1000", "1e39", "inf"):
        assert min(shortest(f"thought_switching:{never}:4", seed) for seed in range(6)) >= 4
    assert min(shortest("thought_switching:0:4", seed) for seed in range(6)) < 4
    assert mull.solve(model, "1", "thought_switching:0:4", max_new_tokens=9).text == FolderSolver(model).write(
        [FolderSolver(model).begin("1 <attempts>", (0,))], Manner(limit=9))[0].text  # fmt: skip


# ---------------------------------------------------------------------------------------------------- self-backtracking


def test_what_a_token_holds_before_a_cut_is_put_there_anew(scripted: Any) -> None:
    """Guards writers whose tokens are parted by nobody: text before the cut stays, and blanks alone are no token."""
    branch = Branch("q", tokens=(Token("a"), Token(" b</"), Token("think>")))
    for length, texts, drawn in ((0, [], []), (2, ["a"], [True]), (3, ["a", " b"], [True, False])):
        cut = scripted({}).cut_text(branch, length)
        assert [token.text for token in cut.tokens] == texts and [token.drawn for token in cut.tokens] == drawn


def test_a_step_that_is_taken_back_is_gone(scripted: Any) -> None:
    """Guards the way back by hand: the wrong step is not read again, whether a mark had closed it or not; a state is
    visited once; and with no rounds nothing is taken back."""
    tree = {
        "": [("1 <step> 8 <step> <backtrack>", -1.0), ("1 <step> 9 <backtrack>", -2.0), ("7 <backtrack>", -3.0),
             ("</think> 3", -40.0)],
        "1 <step>": [("2 <step> </think> 5", -1.0), ("2 <step> </think> 6", -9.0)],
    }  # fmt: skip
    tree |= {text: [("", 0.0)] for text in ("1 <step> 8 <step> <backtrack>", "1 <step> 9 <backtrack>", "7 <backtrack>")}
    found = mull.solve(scripted(tree), "?", "self_backtracking:4,rounds=1")
    assert found.answer == "5" and found.text == "1 <step> 2 <step> </think> 5"
    assert [event.text for event in found.trace if event.what == "backtrack"] == ["1 <step>"]  # "" is where it began
    assert {event.answer for event in found.trace if event.what == "end"} == {"3", "5", "6"}
    assert mull.solve(scripted(tree), "?", "self_backtracking:4,rounds=0").answer == "3"


def test_what_is_taken_back_costs_no_prompt(make_writer: Make) -> None:
    """Guards rollback through the cache: the prompt is read once however often the search goes back, and a text that
    went back is, token by token, what its own beginning leads to."""
    model = make_writer()
    solver = FolderSolver(model)
    found = mull.solve(solver, "1 + 2 + 3", "self_backtracking:16,rounds=3", temperature=1.0, max_new_tokens=40)
    rounds = [event for event in found.trace if event.what == "backtrack"]
    prompt = len(solver.begin("1 + 2 + 3 <search>").memory.ids)
    assert rounds and found.cost.calls <= 64
    assert found.cost.read < prompt + found.cost.tokens + len(rounds)  # of a state its last token is read again


# -------------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ("dream:4", "strategy 'dream' is not known; known are best_of_n, beam"),
        ("majority:0", "strategy majority: n must be at least 1, not 0"),
        ("majority:1000000000", "strategy majority: n must be at most 65,536, not 1,000,000,000"),
        ("best_of_n:65537", "n must be at most 65,536, not 65,537"),
        ("beam:65536,width=131072", "width must be at most 65,536, not 131,072"),
        ("dvts:4,width=4,rounds=65537", "rounds must be at most 65,536"),
        ("lookahead:4,k=100000000", "k must be at most 65,536, not 100,000,000"),
        ("self_backtracking:4,rounds=65537", "rounds must be at most 65,536"),
        ("budget_forcing:65537", "waits must be at most 65,536"),
        ("budget_forcing:1,most=65537", "most must be at most 65,536"),
        ("majority:many", "strategy majority: n 'many' is not an integer; write majority:16"),
        ("majority:4,scorer=oracle", "strategy majority: option 'scorer=oracle' is not known"),
        ("majority:4,style=verse", "style must be one of direct, chain, draft, correct, attempts, search, not 'verse'"),
        ("best_of_n:4,scorer=wise", "scorer 'wise' is not known; known are log_probability, process, settled, random"),
        ("best_of_n:4,choice=first", "choice must be one of max, vote, not 'first'"),
        ("beam:5,width=4", "n=5 must be a multiple of width=4"),
        ("lookahead:4,k=-1", "k must be at least 0, not -1"),
        ("budget_forcing:-1", "waits must be at least 0, not -1"),
        ("budget_forcing:1,least=4,most=2", "least=4 is more than most=2"),
        ("budget_forcing:1,cap=30", "cap=30 leaves no room for an answer within 20 new tokens; allow 33 or more"),
        ("thought_switching:nan:16", "alpha 'nan' is not a number; write thought_switching:3:16"),
        ("thought_switching:-inf", "alpha must be a number of at least -3.4e+38, or inf for no switch, not -inf"),
        ("thought_switching:-1e39:16", "alpha must be a number of at least -3.4e+38, or inf for no switch, not -1e+39"),
        ("best_of_n:4,scorer=process", "scorer process: no process reward: the model has no reward head"),
        ("compute_optimal", "strategy compute_optimal lacks its table, which mull compare writes"),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out(make_writer: Make, strategy: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        mull.solve(make_writer(), "1 + 2", strategy, max_new_tokens=20)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        (
            "best_of_n",
            {"n": 2, "aggregation": "mean"},
            "aggregation must be one of min, last, product, not 'mean'",
        ),
        ("best_of_n", {"n": 2, "choice": "sum"}, "choice must be one of max, vote, not 'sum'; write best_of_n:16"),
        ("best_of_n", {"n": 2.5}, "n 2.5 is not an integer; write best_of_n:16,scorer=process"),
        ("best_of_n", {"scorer": 3}, "scorer 3 is not a text; write"),
        ("budget_forcing", {"put": "foo"}, "put must be one of wait, random, empty, not 'foo'; write budget_forcing:2"),
        ("budget_forcing", {"put": ["wait"]}, "put must be one of wait, random, empty, not"),
        ("majority", {"n": 2, "style": "foo"}, "style must be one of direct, chain, .*, not 'foo'; write majority:16"),
        ("majority", {"n": "2"}, "n '2' is not an integer; write majority:16"),
        ("majority", {"n": True}, "n True is not an integer; write majority:16"),
        ("thought_switching", {"alpha": "3"}, "alpha '3' is not a number; write thought_switching:3:16"),
        ("beam", {"width": None}, "width None is not an integer; write beam"),
        ("compute_optimal", {"table": "t", "budget": "3"}, "budget '3' is not a number"),
    ],
)
def test_options_in_python_are_checked_as_those_in_text(name: str, options: dict[str, Any], says: str) -> None:
    """Guards words that nobody knows, which would run as whatever stands last in the code, and what is no number."""
    with pytest.raises(ValueError, match=rf"^strategy {name}: {says}") as error:
        STRATEGIES[name](**options)
    assert "\n" not in str(error.value)
    if "foo" in options.values():  # what a text can say too is told in the same words
        with pytest.raises(ValueError) as other:
            choose_strategy(",".join([name, *(f"{option}={value}" for option, value in options.items())]))
        assert str(other.value) == str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"generator": 1.5}, "generator must be a seed, an integer, or a torch.Generator, not 1.5"),
        ({"generator": None}, "generator must be a seed, an integer, or a torch.Generator, not None"),
        ({"max_new_tokens": 2.5}, "a limit of 2.5 tokens is no integer; give one of at least 1"),
        ({"max_new_tokens": "9"}, "a limit of '9' tokens is no integer"),
        ({"temperature": "a"}, "temperature must be a number, not 'a'"),
        ({"text": 12}, "the problem must be a text, or a Problem, not 12"),
        ({"text": Problem(b"1")}, "the problem must be a text, or a Problem, not b'1'"),
    ],
    ids=str,
)
def test_what_solve_is_told_is_checked(make_writer: Make, options: dict[str, Any], says: str) -> None:
    """Guards values that would be rounded, silently, or end in a traceback."""
    with pytest.raises(ValueError, match=f"^{says}"):
        mull.solve(make_writer(), **{"text": "1 + 2", **options})


@given(st.lists(st.sampled_from(["", "a", "ab", "b", "aa"]), max_size=12), st.sampled_from(["a", "aa", "ab", "ba"]))
def test_marks_end_where_they_are_counted(pieces: list[str], mark: str) -> None:
    """The slow obvious twin: after each token, whether there is one more mark than before."""
    texts = ["".join(pieces[:number]) for number in range(len(pieces) + 1)]
    expected = [n for n in range(1, len(texts)) if texts[n].count(mark) > texts[n - 1].count(mark)]
    assert Branch("q", tokens=tuple(map(Token, pieces))).ends(mark) == expected


def test_blanks_around_a_strategy_are_none_of_it() -> None:
    """Guards strategies that are cut out of a list or a file."""
    assert choose_strategy(" majority:4\n") == choose_strategy("majority:4")


def test_texts_that_would_be_the_same_are_not_paid_for(make_writer: Make) -> None:
    """Guards greedy votes; and a writer without a loop, or with one iteration, against a scorer of residuals: what one
    iteration lacks is said before anything is written, and is not said to be a loop."""
    for strategy in ("majority:4", "best_of_n:4", "beam:4", "self_backtracking:4"):
        with pytest.raises(ValueError, match="at temperature 0 all of its 4 texts would be the same"):
            mull.solve(make_writer(), "1", strategy, temperature=0)
    for family in ("transformer", "inner_thinking"):  # whose passes have counts, and no residual
        writer = FolderSolver(make_writer(family))
        with pytest.raises(ValueError, match="scorer settled: this writer has no residuals"):
            mull.solve(writer, "1", "best_of_n:2,scorer=settled")
        assert writer.meter.spent.read == 0  # it is said before anything is read
    solver = FolderSolver(make_writer())
    with pytest.raises(ValueError, match=r"at 1 iteration there is no change .* give 2 iterations or more"):
        mull.solve(solver, "1", "best_of_n:2,scorer=settled", iterations=1)
    once = FolderSolver(make_writer(mean_iterations=1))
    with pytest.raises(ValueError, match="scorer settled: at 1 iteration there is no change"):
        mull.solve(once, "1", "best_of_n:2,scorer=settled")
    assert solver.meter.spent.tokens == once.meter.spent.tokens == 0
    assert mull.solve(solver, "1", "best_of_n:2,scorer=settled", iterations=2, max_new_tokens=4).scorer == "settled"
    with pytest.raises(ValueError, match="or a Solver, not str"):
        mull.solve("parity", "1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strategy", "lacks"),
    [
        ("beam:4", "step"),
        ("budget_forcing:1", "wait"),
        ("budget_forcing:0", "end_of_thinking"),
        ("budget_forcing:0,cap=5", "step"),
        ("self_backtracking:4", "backtrack"),
        ("thought_switching:3:4", "switch"),
        ("draft", "draft"),
    ],
)
def test_a_mark_that_is_not_there_is_missed_before_anything_is_written(
    make_writer: Make, strategy: str, lacks: str
) -> None:
    """Guards texts that would be thrown away: a mark may be needed only where a thinking happens to end."""
    solver = FolderSolver(make_writer(), replace(Marks(), **{lacks: "<unheard>"}))
    with pytest.raises(ValueError, match="has no token <unheard>"):
        mull.solve(solver, "1", strategy)
    assert solver.meter.spent == Cost()


def test_the_least_iterations_are_within_the_most(make_writer: Make) -> None:
    """Guards budgets of iterations that nobody could tell from none: an exit rule that begins beyond the limit, of the
    call, of the strategy or of the model, never acts."""
    model = make_writer(mean_iterations=4)
    for strategy, count, most in (("least=9", 8, 8), ("least=5", None, 4), ("least=9,style=chain", 4, 4)):
        with pytest.raises(ValueError, match=f"is more than the {most} iterations that a token gets"):
            mull.solve(model, "1", f"budget_forcing:0,{strategy}", exit="latent:0.3", iterations=count)
    more = {"exit": "latent:0.3", "max_new_tokens": 4}
    assert mull.solve(model, "1", "budget_forcing:0,least=4", **more).cost.tokens  # type: ignore[arg-type]
    assert mull.solve(model, "1", "budget_forcing:0,least=9,most=9", **more).cost.tokens  # type: ignore[arg-type]


def test_every_strategy_runs_as_its_example_says(make_writer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards what help shows: every example can be followed, with a loop and without."""
    rows = [{"strategy": "draft", "iterations": None, "difficulty": 1, "accuracy": 0.5, "flops_per_problem": 1.0}]
    monkeypatch.setattr("mull.inference.strategies.compute_optimal.read_rows", lambda _: rows)
    monkeypatch.setattr(FolderSolver, "refuses_score", None)
    monkeypatch.setattr(FolderSolver, "score", lambda _, branches, __: [0.5 for _ in branches])
    for family in ("recurrent", "transformer"):
        model = make_writer(family, max_length=48)
        for kind in STRATEGIES.values():
            found = mull.solve(
                model, "1", choose_strategy(kind.example), max_new_tokens=40 if "cap" in kind.example else 5
            )
            assert found.trace and found.cost.flops > 0 and found.strategy.startswith(kind.name)


def test_marks_say_where_an_answer_is() -> None:
    """Guards answers: behind the end of the thinking; without one there is none, but where none was asked for."""
    marks = Marks()
    assert marks.prompt("1 + 2", "draft") == "1 + 2 <draft>"
    assert marks.answer("3 <step> </think> 4 </think> 5 ") == "4 </think> 5"
    assert (marks.answer("3 4"), marks.answer("3 4", "direct"), marks.answer("3 </think> 4", "direct")) == (
        "",
        "3 4",
        "4",
    )
    assert replace(marks, between="\n", chain="Think.").prompt("1", "chain") == "1\nThink."
