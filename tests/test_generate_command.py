"""Text through `mull generate` and `mull chat`: what a shell hands over reaches the model as text, nothing is lost."""

import builtins
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import mull
from mull import inference
from mull.cli import main
from mull.inference.chat import Chat
from mull.inference.console import call_of
from mull.inference.prompts import OWN
from mull.inference.sampling import Draw
from mull.training.data import Parity
from mull.training.data.tokenizer import byte_tokenizer

SHORT = ["--iterations", "2", "--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of bytes in fp64, whose next token depends on all tokens."""
    torch.manual_seed(1)
    config = mull.RecurrentDepthConfig(
        vocab_size=257,
        d_model=16,
        n_heads=2,
        mean_iterations=2,
        max_length=40,
        stop_tokens=(256,),
        tie_embeddings=False,
    )
    model = mull.RecurrentDepthTransformer(config).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("attention.out.weight", "attention.qkv.weight")):
                weight.mul_(4)
    path = tmp_path_factory.mktemp("checkpoints") / "bytes"
    mull.save(model, path, tokenizer=byte_tokenizer())
    return path


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail the agreed way; return its line."""
    status = main(arguments)
    captured = capsys.readouterr()
    assert status == 2, captured
    assert captured.err.startswith("mull: error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize(
    "prompt",
    [
        "# Chapter",
        "null",
        "~",
        "[a]",
        "1e5",
        "{a: b}",
        "yes",
        "x: y",
        "- item",
        "&a",
        "*a",
        "!!x",
        "'q'",
        " lead ",
        "-5",
    ],
)
def test_a_prompt_is_text_and_not_yaml(prompt: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = mull.generate(mull.load(folder), prompt, 2, max_new_tokens=6)
    assert main(["generate", str(folder), "--prompt", prompt, *SHORT]) == 0
    assert capsys.readouterr().out == f"{expected.text}\n"


@pytest.mark.parametrize("option", ["--exit", "--decode", "--prompts", "--device"])
@pytest.mark.parametrize("value", ["null", "# x", "&a", "\udcff"])
def test_other_options_of_text_are_not_yaml_either(
    option: str, value: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """null, read as YAML, would be no value at all, and the option would be ignored."""
    prompt = [] if option == "--prompts" else ["--prompt", "a"]
    assert value.replace("\udcff", "\\udcff") in fails(["generate", str(folder), *prompt, option, value], capsys)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", "caf\udce9"], "not UTF-8 text: byte 0xe9 at character 4"),
        (["--prompt", "a", "--stop", ""], "none of them empty"),
        (["--prompt", "a", "--top-p", "0.9"], "top_p 0.9 filters draws, and temperature 0 draws none"),
        (["--prompt", "a", "--min-p", "0.1"], "min_p 0.1 filters draws"),
        (["--prompt", "a", "--min-p", "2", "--temperature", "1"], "min_p 2.0 lies outside 0 < min_p <= 1"),
        (["--prompt", "a", "--top-k", "2.0", "--temperature", "1"], "integer from 1 to 2^63 - 1; value: '2.0'"),
        (["--prompt", "a", "--iterations", "2.5"], "value: '2.5'"),
        (["--prompt", "a", "--dtype", "int8"], "int8"),
        (["--prompt", "a", "--iterations", str(2**40)], "integer from 1 to 1,000,000; value: '1099511627776'"),
        (["--prompt", "a", "--device", "meta"], "device 'meta' cannot be used here (it holds no numbers)"),
        (["--prompt", "a", "--batch-size", "0"], "value: '0'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in fails(["generate", str(folder), *arguments], capsys)


def test_the_coldest_temperature_is_greedy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for temperature in ("0", "1e-60", "1e-320"):
        assert main(["generate", str(folder), "--prompt", "It was", "--temperature", temperature, *SHORT]) == 0
    first, second, third = re.split(r"(?<=\n)(?=.)", capsys.readouterr().out, maxsplit=2)
    assert first == second == third


def test_weights_can_be_had_in_another_type(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = mull.generate(mull.load(folder, dtype=torch.float32), "It was", 2, max_new_tokens=6)
    assert main(["generate", str(folder), "--prompt", "It was", "--dtype", "float32", *SHORT]) == 0
    assert capsys.readouterr().out == f"{expected.text}\n"


def test_a_stop_string_ends_what_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r"""\n of a shell is a line end; `--prompt` and `--prompts` stop alike."""
    from mull.inference.console import unescaped

    assert [unescaped(text) for text in (r"\n\n", r"\\n", r"a\x", "\\")] == ["\n\n", r"\n", r"a\x", "\\"]
    whole = str(mull.generate(mull.load(folder), "It was", 2, max_new_tokens=20).text)
    stop = whole[4:6]
    assert (
        main(["generate", str(folder), "--prompt", "It was", "--iterations", "2", "--stop", stop.replace("\\", r"\\")])
        == 0
    )
    assert capsys.readouterr().out == whole.split(stop)[0] + "\n"


def answers(out: str) -> list[dict[str, Any]]:
    return sorted((json.loads(line) for line in out.splitlines()), key=lambda answer: answer["line"])


def test_each_answer_of_a_file_is_the_answer_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In batches of any size, whatever the lengths of the others, up to the limit of the model; in fp64."""
    choice = random.Random(0)
    prompts = ["".join(choice.choices("abc é", k=length)).strip() or "x" for length in (1, 30, 3, 3, 12, 25, 8)]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    model = mull.load(folder)
    alone = [mull.generate(model, prompt, 2, max_new_tokens=20) for prompt in prompts]
    for batch_size in ("1", "3", "16"):
        command = ["generate", str(folder), "--prompts", str(tmp_path / "prompts.txt"), "--iterations", "2",
                   "--max-new-tokens", "20", "--batch-size", batch_size]  # fmt: skip
        assert main(command) == 0
        found = answers(capsys.readouterr().out)
        assert [answer["prompt"] for answer in found] == prompts
        assert [answer["text"] for answer in found] == [result.text for result in alone]
        assert [answer["tokens"] for answer in found] == [result.new_tokens.shape[1] for result in alone]
        assert all(answer.keys() == {"prompt", *OWN} for answer in found)


@pytest.mark.parametrize(
    "way",
    [
        [],
        ["--exit", "latent:0.3"],
        ["--decode", "speculate:1:3"],
        ["--decode", "wavefront:2:3,noise=0.5"],
    ],
    ids=str,
)
def test_a_drawn_answer_of_a_file_depends_on_the_seed_and_its_line_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: list[str]
) -> None:
    """Whatever it is answered beside: in batches of any size, and in a file whose other lines are others. Rows end at
    different times, so that draws would slip from row to row. Equal prompts on two lines have draws of their own."""
    choice = random.Random(3)
    prompts = ["".join(choice.choices("abc", k=length)) for length in (1, 22, 3, 3, 12, 9)] + ["ab"] * 2

    def drawn(lines: list[str], *options: str) -> list[str]:
        file = tmp_path / "prompts.txt"
        file.write_text("\n".join(lines))
        assert main(["generate", str(folder), "--prompts", str(file), "--iterations", "3", "--max-new-tokens", "15",
                     "--temperature", "1.5", "--top-k", "200", *way, *options]) == 0  # fmt: skip
        return [answer["text"] for answer in answers(capsys.readouterr().out)]

    one, three, many = (drawn(prompts, "--batch-size", size) for size in ("1", "3", "16"))
    assert one == three == many and one[-1] != one[-2]
    others = drawn([prompts[0], *("b" * n for n in range(5, 10)), *prompts[6:]], "--batch-size", "5")
    assert [others[0], *others[6:]] == [one[0], *one[6:]]
    assert drawn(prompts, "--seed", "1") != one


def test_a_bad_line_is_named_and_the_others_are_answered(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = ['{"prompt": "a", "id": 7}', '{"prompt": "' + "long " * 20 + '"}', "not json", "", '{"prompt": "b"}']
    file.write_text("\n".join([*lines, '{"prompt": "c", "x": NaN}', '{"prompt": "d", "text": "gold"}']))
    assert main(["generate", str(folder), "--prompts", str(file), *SHORT]) == 2
    captured = capsys.readouterr()
    assert [(each["line"], each["prompt"], each.get("id")) for each in answers(captured.out)] == [
        (1, "a", 7),
        (5, "b", None),
    ]
    wrong = [line for line in captured.err.splitlines() if line.startswith("mull: error: ")]
    says = ["2: the prompt has 100 positions", "3: not JSON", "6: NaN is no number", "7: the answer has a field text"]
    assert [f"{file}, line {say}" in line for say, line in zip(says, wrong, strict=True)] == [True] * 4


def test_an_option_that_cannot_be_had_is_the_only_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards the one line of a mistake: nothing was written, so there is nothing to sum up beside it."""
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    given = ["--iterations", "2", "--decode", "speculate:2:4"]
    assert main(["generate", str(folder), "--prompts", str(tmp_path / "prompts.txt"), *given]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("mull: error: a draft at 2 iterations must be shallower")


def test_answers_that_are_finished_are_kept_when_it_is_interrupted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the second batch: the first is on standard output."""
    (tmp_path / "prompts.txt").write_text("ccc\na\nbb\n")
    real, calls = inference.console.stream, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(inference.console, "stream", interrupted)
    command = ["generate", str(folder), "--prompts", str(tmp_path / "prompts.txt"), "--batch-size", "1", *SHORT]
    assert main(command) == 130
    assert [answer["prompt"] for answer in answers(capsys.readouterr().out)] == ["a", "bb"]


def test_prompts_come_from_standard_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\r\ntwo\x0c\xff\ntwo"), encoding="ascii"))
    assert main(["generate", str(folder), "--prompts", "-", *SHORT]) == 2
    captured = capsys.readouterr()
    assert [answer["prompt"] for answer in answers(captured.out)] == ["one", "two"]
    assert "line 2: byte 5 is 0xff, which is not UTF-8" in captured.err


def talk(
    folder: Path, lines: str | bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[str, str]:
    """What `mull chat` says to these lines on a standard input that is no terminal."""
    content = lines.encode() if isinstance(lines, str) else lines
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    assert main(["chat", str(folder), "--max-new-tokens", "6", *options]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_a_chat_goes_on_with_all_that_was_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each answer is what the whole text so far would get in one prompt; another count holds from then on."""
    model, said, expected = mull.load(folder), list(b"It was"), []
    for turn, count in ((None, 2), (b"\nnot", 2), (b"\nso", 5)):
        said += list(turn or b"")
        answer = mull.generate(model, [said], count, max_new_tokens=6).new_tokens[0].tolist()
        said += answer
        expected.append(byte_tokenizer().decode(answer))
    out, err = talk(
        folder, "It was\nnot\n/iterations 5\nso\n/quit\nunheard\n", capsys, monkeypatch, "--iterations", "2"
    )
    assert out == "".join(answer + "\n" for answer in expected) and not err


def test_a_chat_forgets_its_oldest_turns_at_the_limit(folder: Path) -> None:
    """40 positions: the third turn finds room where the first was, and the text before it is not in the answer."""
    model = mull.load(folder)
    chat = Chat(model, {**chat_call(folder), "max_new_tokens": 6})
    for text in ("first turn", "second turn"):
        "".join(chat.answer(text))
    kept = list(chat.turns[1])
    assert sum(map(len, chat.turns)) == 10 + 6 + 12 + 6
    answer = "".join(chat.answer("third"))
    prompt = [*kept, *b"\nthird"]
    expected = mull.generate(model, [prompt], 2, max_new_tokens=6)
    assert chat.turns[0] == kept and expected.text == [answer]
    assert sum(map(len, chat.turns)) <= 40
    with pytest.raises(ValueError, match="the turn has 51 positions, and the model's max_length is 40"):
        list(chat.answer("x" * 50))
    assert len(chat.turns) == 2, "a turn that is refused leaves the talk as it was"


def chat_call(folder: Path) -> dict[str, Any]:
    from mull.cli import new_parser
    from mull.inference.commands import add_writing

    parser = new_parser("chat")
    add_writing(parser)
    return call_of(parser.parse_args([str(folder), "--iterations", "2"]))


def test_mistakes_in_a_chat_do_not_end_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = b"/iterations 1000000\n/iterations 2\n/iterations x\n/iterations 1000001\n/iterations 0\n"
    lines = counts + b"/dance\ncaf\xe9\n" + b"x" * 50 + b"\n\nIt was\n"
    out, err = talk(folder, lines, capsys, monkeypatch, "--iterations", "2")
    says = [
        "write /iterations 8",
        "no count from 1 to 1,000,000",
        "at least 1",
        "no command '/dance'",
        "byte 0xe9",
        "max_length is 40",
    ]
    assert [say in line for say, line in zip(says, err.splitlines(), strict=True)] == [True] * 6
    assert out == f"{mull.generate(mull.load(folder), 'It was', 2, max_new_tokens=6).text}\n"


def test_an_interrupt_stops_the_answer_and_not_the_chat(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was written before Ctrl-C stays said, and the next turn goes on behind it."""
    real, calls = Draw.choose, []

    def choose(self: Draw, logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, logits)

    typed = iter(["It was", KeyboardInterrupt(), "not"])

    def typing(_: str = "") -> str:
        line = next(typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(Draw, "choose", choose)
    monkeypatch.setattr(builtins, "input", typing)
    _, err = talk(folder, "", capsys, monkeypatch, "--iterations", "2")
    assert err.count("[stopped; /quit ends]") == 2
    assert len(calls) == 3 + 6


def test_a_chat_stops_at_stop_strings(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = str(mull.generate(mull.load(folder), "It was", 2, max_new_tokens=6).text)
    stop = whole[2:4]
    out, _ = talk(folder, "It was\n", capsys, monkeypatch, "--iterations", "2", "--stop", stop.replace("\\", "\\\\"))
    assert out == whole.split(stop)[0] + "\n"


@pytest.mark.parametrize("decode", ["speculate:1:4", "speculate:2:9", "wavefront:2:4,threshold=0.5", "plain"])
def test_a_chat_writes_by_any_decoder(folder: Path, decode: str) -> None:
    """Each answer is what `generate` writes by the same decoder behind all that was said, also behind answers that
    ended in the middle of a round: at a stop string, or broken off."""
    model = mull.load(folder)
    call = {**chat_call(folder), "iterations": 3, "max_new_tokens": 5, "decode": decode}
    chat, said = Chat(model, call), list[int]()

    def expected(text: str) -> mull.inference.generate.Generation:
        said.extend(("\n" * bool(said) + text).encode())
        return mull.generate(model, [said], 3, max_new_tokens=5, decode=decode)

    lossless = not decode.startswith("wavefront")  # later turns see keys of less thought than a prompt has
    for number, text in enumerate(("It", "was")):
        whole, found = expected(text), "".join(chat.answer(text))
        assert [found] == whole.text or (number and not lossless)
        said = chat.said if number and not lossless else said + [t for t in whole.new_tokens[0].tolist() if t != 256]
        assert chat.said == said
    pieces = chat.answer("so")
    next(pieces)
    pieces.close()  # as Ctrl-C does between two tokens
    said += [*b"\nso", chat.said[-1]]
    assert chat.said == said
    after, found = expected("on"), "".join(chat.answer("on"))
    assert [found] == after.text or (found and not lossless)


def test_a_chat_that_is_interrupted_in_a_draft_forgets_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds drafted tokens then that nobody said."""
    model = mull.load(folder)
    chat = Chat(model, {**chat_call(folder), "iterations": 3, "max_new_tokens": 6, "decode": "speculate:1:4"})

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mull.inference.decoders.speculative.Speculative.verify", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(chat.answer("It was"))
    assert chat.session.lengths[0] > len(chat.said), "drafts are held"
    said = [*chat.said, *b"\nnot"]
    assert ["".join(chat.answer("not"))] == mull.generate(model, [said], 3, max_new_tokens=6).text


def test_a_chat_refuses_a_decoder_that_its_model_or_count_does_not_go_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At its start with one line; at a later count with one line too, and the old count stays."""
    wrong = ["chat", str(folder), "--iterations", "2", "--decode", "speculate:2:4"]
    assert "a draft at 2 iterations must be shallower" in fails(wrong, capsys)
    assert "a call has one decoder" in fails([*wrong, "--exit", "latent:0.1"], capsys)
    out, err = talk(
        folder, "/iterations 1\nIt\n", capsys, monkeypatch, "--iterations", "2", "--decode", "speculate:1:4"
    )
    assert "a draft at 1 iterations must be shallower" in err and err.count("\n") == 1
    assert out == f"{mull.generate(mull.load(folder), 'It', 2, max_new_tokens=6).text}\n"


def test_what_stands_before_a_text_stays_when_turns_are_forgotten(tmp_path: Path) -> None:
    """A task's <start>, once, before all that is remembered."""
    task = Parity(8)
    config = mull.RecurrentDepthConfig(
        vocab_size=len(task.symbols) + 1, d_model=16, n_heads=2, mean_iterations=2, max_length=12
    )
    mull.save(mull.RecurrentDepthTransformer(config), tmp_path, tokenizer=task.tokenizer)
    start, symbol = task.symbols.index("<start>"), task.symbols[0]
    chat = Chat(mull.load(tmp_path), {**chat_call(tmp_path), "max_new_tokens": 2})
    for turn in range(1, 4):
        list(chat.answer(" ".join([symbol] * 4)))
        assert chat.said[0] == start, turn
        assert chat.session.lengths[0] == len(chat.said) - 1
