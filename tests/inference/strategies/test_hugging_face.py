"""Any causal model of transformers as a solver: what it writes is what the whole text gives, read anew."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mull.inference.strategies import Marks
from mull.inference.strategies.budget_forcing import NotAtOnce
from mull.inference.strategies.hugging_face import HuggingFaceSolver, Memory
from mull.inference.strategies.loading import solver_from
from mull.inference.strategies.ordinary import ORDINARY, marks_with
from mull.inference.strategies.solver import Branch, Manner
from mull.inference.strategies.solving import solve
from mull.inference.strategies.together import solve_together

transformers = pytest.importorskip("transformers")

WORDS = ["<end>", "<unk>", *"0123456789+=?", *(text for text in vars(Marks()).values() if text.strip())]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96, "eos_token_id": 0}
MANNER = Manner(limit=24)


def tokenizer() -> Any:
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<end>")


def model(kind: str) -> Any:
    torch.manual_seed(3)
    if kind == "mamba":  # a recurrent state: nothing that could be cut
        config = transformers.MambaConfig(**SIZES, state_size=4, expand=1, eos_token_id=0, time_step_rank=2)
    else:
        window = {"sliding_window": 5} if kind == "mistral" else {}
        class_of = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}[kind]
        config = class_of(**SIZES, **HEADS, **window, initializer_range=0.6)
    return transformers.AutoModelForCausalLM.from_config(config).double().eval()


@pytest.fixture(scope="module", params=["llama", "mistral", "mamba"])
def solver(request: pytest.FixtureRequest) -> HuggingFaceSolver:
    return HuggingFaceSolver(model(request.param), tokenizer(), Marks())


def anew(solver: HuggingFaceSolver) -> HuggingFaceSolver:
    """The slow twin: it keeps nothing, and reads the whole text before every token."""
    found = HuggingFaceSolver(solver.model, solver.tokenizer, solver.marks)
    found.keeps = False
    return found


def ids(branch: Branch) -> list[int]:
    return [token.id for token in branch.tokens]


def test_caches_are_copied_where_that_is_right(solver: HuggingFaceSolver) -> None:
    """A list of keys and values is; a recurrent state is not. And the trial costs nobody anything."""
    assert solver.keeps is (solver.model.config.model_type != "mamba")
    assert anew(solver).meter.spent.flops == 0


def test_greedy_is_generate(solver: HuggingFaceSolver) -> None:
    """Guards positions, masks, windows and stops: the tokens of transformers' own generate."""
    for text in ("1 + 2 = ?", "7 ? 7 ? 7 ? 7 + 7 + 7 = 1 <chain>"):
        given = solver.tokenizer(text, return_tensors="pt").input_ids
        expected = solver.model.generate(given, max_new_tokens=24, do_sample=False, pad_token_id=0)[0, given.shape[1] :]
        assert ids(solver.write([solver.begin(text)], MANNER)[0]) == expected.tolist()


def test_forked_cut_and_put_is_read_anew(solver: HuggingFaceSolver) -> None:
    """Branches of all lengths that were forked, stopped at marks, cut and written to go on as their text does alone."""
    draws = Manner(temperature=1.0, limit=14)
    twin = anew(solver)

    def tree(one: HuggingFaceSolver, batch: int) -> list[Branch]:
        one.batch_size = batch
        first = one.write([one.begin("1 + 2 = ?", (5,))] * 3 + [one.begin("3 = ?", (6,))], draws, ["<step>"], limit=9)
        cut = [one.cut(branch, len(branch.tokens) // 2) for branch in first]
        put = one.append(cut, "<wait> 4 +")
        written = [one.write(each, draws, limit=14) for each in (put, [*first, first[0]], cut)]
        return [branch for each in written for branch in each]

    found = tree(solver, 16)
    assert [ids(branch) for branch in found] == [ids(branch) for branch in tree(twin, 1)]
    assert len({tuple(ids(branch)) for branch in found[4:9]}) > 3  # forks are drawn apart
    assert [ids(branch) for branch in found[9:]] == [ids(branch) for branch in found[4:8]]  # as if never taken back
    for branch in found[:5]:
        if not branch.ended:
            plain = solver.write([Branch("", memory=Memory(branch.memory.ids, solver.meter))], Manner(limit=8))[0]
            further = solver.write([branch], Manner(limit=len(branch.tokens) + 8))[0]
            assert ids(further)[len(branch.tokens) :] == ids(plain)


def test_marks_stop_a_branch(solver: HuggingFaceSolver) -> None:
    """Behind the first of the marks, which may be any text, and nowhere else; `ends` sees it there."""
    whole = solver.write([solver.begin("1 + 2 = ?")], MANNER)[0]
    mark = f" {' '.join(whole.text.split()[1:3])}"  # of two tokens
    stopped = solver.write([solver.begin("1 + 2 = ?")], MANNER, [mark, "never"])[0]
    assert whole.text.startswith(stopped.text) and stopped.at(mark) and stopped.ends(mark) == [len(stopped.tokens)]
    assert solver.write([stopped], MANNER)[0].text == whole.text


def test_a_table_of_positions_is_looked_up_and_costs_nothing() -> None:
    """Guards models that learn positions, whose table may be larger than all of their layers."""
    sizes = {"vocab_size": len(WORDS), "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    short, long = (
        HuggingFaceSolver(
            transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=length, **sizes)).eval(), tokenizer()
        )
        for length in (64, 4096)
    )
    for solver in (short, long):
        solver.write([solver.begin("1 + 2 = ?")], Manner(limit=3))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        short.model(torch.ones(1, 6, dtype=torch.long))
    assert long.costs.flops(6, 6, 6) == short.costs.flops(6, 6, 6)
    assert short.costs.flops(6, 6, 6) == pytest.approx(counter.get_total_flops(), rel=0.05)  # biases and norms aside


def test_flops_are_those_executed() -> None:
    """Within 1 % of torch's counter, with a prompt that is read once for its forks; and tokens and calls."""
    solver = HuggingFaceSolver(model("llama"), tokenizer(), Marks())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        solver.write([solver.begin("1 + 2 = ? 1 + 2 = ? 3")] * 4, Manner(temperature=1.0, limit=12))
    spent = solver.meter.spent
    assert spent.flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert spent.calls == 4 and 12 < spent.tokens <= 48 and spent.read == 11 + spent.tokens - 4
    alone = HuggingFaceSolver(solver.model, solver.tokenizer, Marks())
    for number in range(4):
        alone.write([alone.begin("1 + 2 = ? 1 + 2 = ? 3", (number,))], Manner(temperature=1.0, limit=12))
    assert alone.meter.spent.flops > spent.flops * 1.1


def test_strategies_run_on_it(solver: HuggingFaceSolver) -> None:
    """The same strategies, from the text alone, and refusals in one line."""
    first, second = (solve(solver, "1 + 2 = ?", "chain", max_new_tokens=12) for _ in range(2))
    assert first.text == second.text and first.cost.flops > 0 and first.cost.tokens <= 12
    with pytest.raises(ValueError, match=r"no loop that mull could turn: leave iterations 4 out"):
        solve(solver, "1 + 2 = ?", "chain", iterations=4)
    with pytest.raises(ValueError, match=r"no loop that mull could turn: leave the exit rule latent:0.1 out"):
        solve(solver, "1 + 2 = ?", "chain", exit="latent:0.1")
    with pytest.raises(ValueError, match=r"no process reward"):
        solver.score([solver.begin("1")], MANNER)


def test_several_problems_at_once(solver: HuggingFaceSolver) -> None:
    """Each has the text and the bill that it has alone, of equal lengths and others."""
    texts, how = ("1 + 2 = ?", "3 + 4 = ?", "7"), {"max_new_tokens": 8}
    jobs = [lambda one, n=n, t=t: solve(one, t, "majority:2", generator=n, **how) for n, t in enumerate(texts)]
    together = list(solve_together(HuggingFaceSolver(solver.model, solver.tokenizer, Marks()), jobs))
    for job, found in zip(jobs, together, strict=True):
        alone = job(HuggingFaceSolver(solver.model, solver.tokenizer, Marks()))
        assert (found.text, found.cost.tokens, found.cost.read) == (alone.text, alone.cost.tokens, alone.cost.read)
        assert found.cost.flops == pytest.approx(alone.cost.flops) and alone.cost.flops > 0


def test_there_is_room_or_one_line() -> None:
    """A branch ends where the model has no more positions; what does not fit is refused."""
    solver = HuggingFaceSolver(model("llama"), tokenizer(), Marks())
    (full,) = solver.write([solver.begin("1 " * 94)], Manner(limit=24))
    assert full.ended and len(full.tokens) <= 2
    with pytest.raises(ValueError, match=r"the prompt has 96 tokens, and the model has room for 96"):
        solver.begin("1 " * 96)
    with pytest.raises(ValueError, match=r"'<wait> 4' needs 2 tokens and there is room for 1"):
        solver.append([solver.begin("1 " * 95)], "<wait> 4")
    with pytest.raises(ValueError, match=r"keeps nothing of it"):
        solver.begin(" ")


def test_bytes_and_chats() -> None:
    """Half a character has no text until it is whole, and a prompt becomes a message where there is a template."""
    from mull.inference.text import UNDECIDED
    from mull.training.data.tokenizer import byte_tokenizer

    raw = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    sizes = {**SIZES, "vocab_size": 300}
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **{**HEADS, "eos_token_id": 299}))
    solver = HuggingFaceSolver(made, raw)
    (branch,) = solver.append([solver.begin("aé")], "é→ x\n\ny")
    assert "".join(token.text for token in branch.tokens) == "é→ x\n\ny" and len(branch.tokens) == 10
    assert [token.text for token in branch.tokens][:5] == ["", "é", "", "", "→"] and UNDECIDED not in branch.text
    assert branch.ends("\n\n") == [9]
    assert solver.first_tokens("W") == sorted({ord("W"), ord(" ")} & set(solver.first_tokens("W")))
    raw.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    chat = HuggingFaceSolver(made, raw)
    assert bytes(chat.begin("hi").memory.ids) == b"[hi]:"


def test_forced_ends_of_several_tokens_leave_room() -> None:
    """Guards an answer behind a capped thinking: what is put there to close it takes as many tokens as the marks have,
    and with one token less there would be none."""
    marks = Marks(end_of_thinking="1 + 2 =")
    solver = HuggingFaceSolver(model("llama"), tokenizer(), marks)
    with pytest.raises(ValueError, match=r"cap=4 leaves no room for an answer within 9 new tokens; allow 10 or more"):
        solve(solver, "7 ? 7", "budget_forcing:0,cap=4", max_new_tokens=9)
    found = solve(solver, "7 ? 7", "budget_forcing:0,cap=4", max_new_tokens=10)
    assert [event.what for event in found.trace] == ["cap", "sample"] and found.answer


def test_folders(tmp_path: Any) -> None:
    """A folder of transformers is known by its config; one that cannot be opened is one line."""
    made = model("llama").float()
    made.save_pretrained(tmp_path / "tiny")
    tokenizer().save_pretrained(tmp_path / "tiny")
    solver = solver_from(tmp_path / "tiny", marks={"chain": "<chain>", "between": " "})
    assert isinstance(solver, HuggingFaceSolver) and solver.marks.wait == ORDINARY.wait
    text = "1 + 2 = ? <chain>"
    expected = HuggingFaceSolver(made, tokenizer()).write([solver.begin(text)], MANNER)[0]
    assert solver.write([solver.begin(text)], MANNER)[0].text == expected.text
    for dtype in (None, torch.float64, torch.bfloat16):  # not silently another
        assert solver_from(tmp_path / "tiny", dtype=dtype).model.dtype == (dtype or torch.float32)
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"by transformers, with weights as safetensors: .*; save it anew with"):
        solver_from(tmp_path / "tiny")
    with pytest.raises(ValueError, match=r"there is no mark 'hmm'; there are direct, chain"):
        marks_with({"hmm": "x"})
    for name in ("step", "end_of_thinking", "wait", "switch", "backtrack"):  # an empty one is met behind every token
        with pytest.raises(ValueError, match=f"the mark {name} is empty: nobody could tell where it stands; give a te"):
            marks_with({name: ""})
    assert marks_with({"chain": "", "between": ""}).prompt("1", "chain") == "1"


# ------------------------------------------------------------------------------------------- marks of several tokens


class ByHeart(HuggingFaceSolver):
    """A writer of single characters that knows by heart what it writes, so that every mark is of many tokens: the first
    text, the second where it is to draw afresh, and 7 behind what it does not know."""

    texts: tuple[str, ...] = ()

    def draw(self, lines: Any, *_: Any) -> list[int]:
        found = []
        for line in lines:
            afresh, so_far = any(part < 0 for part in line.branch.key), "".join(token.text for token in line.tokens)
            text = self.texts[afresh]
            if not text.startswith(so_far):
                text = so_far.removesuffix("7") + "7"
            found += self.encoded(text[len(so_far)]) if len(text) > len(so_far) else [0]
        return found


@pytest.fixture
def by_heart() -> ByHeart:
    letters = ["<end>", *sorted({*"<think>/Backtrack Waitbq127\n", *"".join(vars(ORDINARY).values())})]
    made = Tokenizer(WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<end>"))
    made.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
    made.decoder = Fuse()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", clean_up_tokenization_spaces=False
    )
    config = transformers.LlamaConfig(**{**SIZES, **HEADS, "vocab_size": len(letters), "max_position_embeddings": 512})
    return ByHeart(transformers.AutoModelForCausalLM.from_config(config).eval(), fast)


def test_weights_never_come_from_a_pickle(tmp_path: Path) -> None:
    """Guards whoever opens a folder of somebody else: a pickle of weights, which transformers would read, is not."""
    made, place = model("llama"), tmp_path / "tiny"
    made.save_pretrained(place)
    tokenizer().save_pretrained(place)
    (place / "model.safetensors").unlink()
    torch.save(made.state_dict(), place / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"by transformers, with weights as safetensors: .*; save it anew with"):
        solver_from(place)


@pytest.mark.parametrize(
    ("strategy", "text", "tokens"),
    [
        ("budget_forcing:0", "a\n\nb</think>7", 4),
        ("budget_forcing:0", "ab 1", 4),  # it did not end
        ("budget_forcing:0,cap=2", "ab\n\n</think>1", 2),  # closed beyond the cap
        ("budget_forcing:0,cap=6", "ab\n\n</think>1", 4),  # half of the mark was drawn within the cap
        ("chain", "</think>1", 0),
    ],
)
def test_thinking_is_counted_in_tokens(by_heart: ByHeart, strategy: str, text: str, tokens: int) -> None:
    """Guards what a cap is of: tokens, here characters, where words would be one or two."""
    by_heart.texts = (text, "")
    assert solve(by_heart, "q", strategy, max_new_tokens=60).thinking == tokens


@pytest.mark.parametrize(
    ("strategy", "first", "afresh", "expected"),
    [
        ("budget_forcing:0", "a\n\nb</think>7", "", "a\n\nb</think>7"),
        ("budget_forcing:1", "a\n\nb</think>7", "", "a\n\nbWait7"),
        ("budget_forcing:1,put=empty", "a\n\nb</think>7", "a\n\nb1</think>2", "a\n\nb1</think>2"),
        ("budget_forcing:1,cap=8", "a\n\nb</think>7", "", "a\n\nb\n\n</think>7"),
        ("budget_forcing:0,cap=2", "ab\n\n</think>1</think>2", "", "ab\n\n</think>1"),
        ("budget_forcing:0,cap=2", "ab\n\n</think></think>2", "", "ab\n\n</think>"),
        ("self_backtracking:1", "a\n\nbb\n\nBacktrack", "a\n\n2", "a\n\n2"),
        ("self_backtracking:1", "a\n\nbbBacktrack", "a\n\n2", "a\n\n2"),
        ("self_backtracking:1", "a\n\n\nbb\n\nBacktrack", "a\n\n\n2", "a\n\n\n2"),
        ("self_backtracking:1,rounds=0", "a\n\nbbBacktrack2", "", "a\n\nbbBacktrack2"),
    ],
)
def test_a_mark_of_many_tokens_is_taken_back_whole(
    by_heart: ByHeart, strategy: str, first: str, afresh: str, expected: str
) -> None:
    """Guards writers whose marks are no tokens of their own: what is put in place of a mark leaves nothing of it, nor
    of half a mark, and a step is taken back with its end."""
    by_heart.texts = (first, afresh)
    assert solve(by_heart, "q", strategy, max_new_tokens=60).text == expected


def test_nothing_in_place_of_a_wait_is_not_the_end_again(solver: HuggingFaceSolver) -> None:
    """Guards the control of budget forcing where logits are those of transformers: behind the cut, what is drawn begins
    no end of the thinking."""
    held = set(solver.first_tokens(solver.marks.end_of_thinking))
    root, manner = solver.begin("1 + 2 <correct>", (0,)), Manner(limit=2, temperature=5.0)
    roots = [root.again(n) for n in range(150)]

    def first(hook: NotAtOnce | None) -> set[int]:
        return {branch.tokens[0].id for branch in solver.write(roots, manner, before=hook)}

    assert first(None) & held  # it would be drawn
    assert not first(NotAtOnce(tuple(held))) & held
