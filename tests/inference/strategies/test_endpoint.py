"""A model behind an endpoint as a solver: against mull's own server, and against servers that misbehave."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import exp
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import mull
from mull.cli import main
from mull.inference.early_exit import choose_exit
from mull.inference.exits import parse
from mull.inference.sampling import Draw
from mull.inference.strategies import Marks
from mull.inference.strategies.endpoint import MAX_SEED, EndpointError, EndpointSolver
from mull.inference.strategies.folder import FolderSolver
from mull.inference.strategies.loading import read_marks, solver_from
from mull.inference.strategies.pieces import up_to, words
from mull.inference.strategies.solver import Branch, Line, Manner, Solver, Token, seed_of
from mull.inference.strategies.solving import solve
from mull.inference.strategies.together import solve_together
from mull.inference.written import written_out

pytest.importorskip("openai")

WORDS = [*"0123456789+=?", *(text for text in vars(Marks()).values() if text.strip()), "<end>", "<unk>"]


@pytest.fixture(scope="module")
def model() -> mull.RecurrentDepthTransformer:
    """A model whose marks are words like others, so that any client can write them."""
    torch.manual_seed(7)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    sizes = {"d_model": 24, "n_heads": 3, "n_kv_heads": 3, "d_ff": 32, "max_length": 96}
    config = mull.RecurrentDepthConfig(
        vocab_size=len(WORDS) - 1,  # it never writes <unk>, which nobody may send back
        n_prelude=1,
        n_core=1,
        n_coda=1,
        mean_iterations=4,
        stop_tokens=(WORDS.index("<end>"),),
        **sizes,
    )
    made = mull.RecurrentDepthTransformer(config).double().eval()
    for parameter in made.parameters():  # answers that depend on the text, and on the depth
        parameter.data.mul_(2.5 if parameter.ndim > 1 else 1)
    made.tokenizer = tokenizer
    return made


@pytest.fixture(scope="module")
def address(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """mull's own server on this machine."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from mull.inference.serve.application import Service
    from mull.inference.serve.guard import Guard
    from mull.inference.serve.limits import Limits
    from mull.inference.serve.running import Server, listening
    from mull.inference.serve.served import Served

    folder, limits = tmp_path_factory.mktemp("served") / "tiny", Limits()
    mull.save(model, folder, model.tokenizer)
    served = Served.of(str(folder), limits, dtype=torch.float64)
    server = Server(Service({"tiny": served}, limits, Guard("127.0.0.1")), listening("127.0.0.1", 0))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"{server.url}/v1"
    server.end()
    thread.join(10)


PROBLEMS = ("1 + 2 = ?", "3 = ? 4", "7", "5 + 5 + 5 = ?")


@pytest.mark.parametrize("iterations", [1, 4])
def test_answers_are_those_of_the_folder(model: Any, address: str, iterations: int | None) -> None:
    """The same strategies through the official client, at every depth: text, answer, tokens; and no FLOPs."""
    folder, endpoint = FolderSolver(model), EndpointSolver(address, "tiny", Marks())
    for text in PROBLEMS[:2]:
        for strategy in ("direct", "chain"):
            here, there = (
                solve(each, text, strategy, iterations=iterations, max_new_tokens=12) for each in (folder, endpoint)
            )
            assert (there.text, there.answer) == (here.text, here.answer)
            assert there.cost.flops == 0 and there.cost.calls == 1 and there.cost.tokens == here.cost.tokens


def test_branches_are_those_of_the_folder(model: Any, address: str) -> None:
    """Guards marks (of which the server does not say that it met them), putting text, rolling back and going on."""

    def tree(solver: Solver) -> list[str]:
        begun = [solver.begin(solver.marks.prompt(text, "chain")) for text in PROBLEMS]
        first = solver.write(begun, Manner(limit=16), ["<step>", "<wait>", "<search>"])
        put = solver.append([solver.cut(branch, min(2, len(branch.tokens))) for branch in first], "<wait> 4")
        second = solver.write([*put, *first], Manner(limit=24), ["<search>"])
        return [f"{branch.text} {branch.at('<search>')} {branch.ended}" for branch in [*first, *second]]

    endpoint = EndpointSolver(address, "tiny", Marks())
    found = tree(endpoint)
    assert found == tree(FolderSolver(model)) and any("<search> True" in each for each in found)
    assert endpoint.tells_tokens and endpoint.tells_stops


def test_log_probabilities_are_those_of_the_folder(model: Any, address: str) -> None:
    """What scorers go by, token by token, though this server's tokens lack the blanks between them."""
    one, other = (
        solver.write([solver.begin("1 + 2 = ? <chain>")], Manner(limit=9))[0]
        for solver in (FolderSolver(model), EndpointSolver(address, "tiny", Marks()))
    )
    chances = [token.log_probability for token in other.tokens]
    assert chances == pytest.approx([token.log_probability for token in one.tokens], abs=1e-9)
    assert other.log_probability == pytest.approx(one.log_probability)


@pytest.fixture
def drawn_as_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders draw all tokens of a call from one generator, as a server draws an answer, so that both draw the same."""
    sources: dict[int, tuple[Line, torch.Generator]] = {}

    def draw(manner: Manner, lines: Sequence[Line] = ()) -> Draw:
        for line in lines:
            seed = seed_of(line.branch.key, len(line.branch.tokens)) % MAX_SEED
            sources.setdefault(id(line), (line, torch.Generator().manual_seed(seed)))
        return Draw([sources[id(line)][1] for line in lines], manner.temperature, manner.top_k, manner.top_p)

    monkeypatch.setattr(Manner, "draw", draw)


RANKING = ("best_of_n:4", "beam:4,width=2", "dvts:4,width=2", "lookahead:4,width=2", "self_backtracking:4,rounds=2")


@pytest.mark.usefixtures("drawn_as_served")
@pytest.mark.parametrize("strategy", RANKING)
def test_choices_are_those_of_the_folder(model: Any, address: str, strategy: str) -> None:
    """Guards what rankings go by, the probabilities of stops and ends included, which the server leaves out of its
    text: from the same draws every text, score and choice is the folder's, and not what was written first."""
    first, ranked = [], []
    for seed, text in enumerate(PROBLEMS[:2]):
        here, there = (
            solve(each, text, strategy, generator=seed, temperature=2.0, max_new_tokens=16)
            for each in (FolderSolver(model), EndpointSolver(address, "tiny", Marks()))
        )
        assert [(each.text, each.chosen) for each in there.trace] == [(each.text, each.chosen) for each in here.trace]
        assert [each.score for each in there.trace] == pytest.approx([each.score for each in here.trace], abs=1e-9)
        assert (there.text, there.answer, there.thinking) == (here.text, here.answer, here.thinking)
        ends = [each for each in there.trace if each.what in ("sample", "end")]
        first.append(ends[0].chosen)
        ranked.append(len({each.score for each in ends}) > 1)
    assert any(ranked) and not all(first)


def test_a_token_is_parted_where_its_text_is_cut() -> None:
    """Guards marks that a server writes as parts of its tokens: what stands before the mark stays as it was, blanks and
    all, and no blank comes between."""
    solver = EndpointSolver("http://127.0.0.1:1/v1", "none")
    branch = Branch("q", tokens=(Token(" do"), Token("ne</", log_probability=-1.0), Token("think>")), ended=True)
    for length, expected in ((0, []), (2, [" d"]), (3, [" do"]), (5, [" do", "ne"])):
        cut = solver.cut_text(branch, length)
        assert [token.text for token in cut.tokens] == expected and not cut.ended
    assert solver.cut_text(branch, len(branch.written)) == branch


def test_a_model_that_is_not_served(address: str) -> None:
    with pytest.raises(EndpointError, match=r"v1 refuses with status 404: .*other"):
        solve(EndpointSolver(address, "other", Marks()), "1", "chain")


# Servers that misbehave -----------------------------------------------------------------------------------------------

Stub = Callable[..., tuple[str, list[dict[str, Any]]]]


@pytest.fixture
def stub() -> Iterator[Stub]:
    """Starts a server that answers every request with what a function of its body gives: status and text."""
    servers = []

    def start(answer: Callable[[dict[str, Any]], tuple[int, str]]) -> tuple[str, list[dict[str, Any]]]:
        seen: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status, text = answer(seen[-1])
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # whoever asked may have gone
        Thread(target=server.serve_forever, daemon=True, args=(0.05,)).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def said(text: Any, reason: Any = "stop", **more: Any) -> str:
    choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": None, **more}
    return json.dumps({"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]})


def test_what_is_asked(stub: Stub) -> None:
    """Seeds of their own for forks, the same ones again; stops, limits and filters; whole text where there is no
    `stop_reason`, and no second question where there is one."""
    address, seen = stub(lambda asked: (200, said(" a b", stop_reason=asked.get("stop", [None])[0])))
    solver = EndpointSolver(address, "m", Marks())
    branches = solver.write([solver.begin("p", (3,))] * 3, Manner(temperature=0.7, top_p=0.9, limit=9), ["<step>"])
    assert [branch.text for branch in branches] == ["a b<step>"] * 3 and not branches[0].ended
    assert len({asked["seed"] for asked in seen}) == 3 and all(0 <= asked["seed"] < 2**31 for asked in seen)
    assert {(a["temperature"], a["top_p"], a["max_tokens"], *a["stop"]) for a in seen} == {(0.7, 0.9, 9, "<step>")}
    solver.write([solver.begin("p", (3,))] * 3, Manner(temperature=0.7, limit=9), ["<step>"])
    assert sorted(asked["seed"] for asked in seen[3:]) == sorted(asked["seed"] for asked in seen[:3])
    solver.write(branches[:1], Manner(limit=9))
    assert seen[-1]["prompt"] == "p a b<step>" and seen[-1]["max_tokens"] == 9 - len(branches[0].tokens)
    assert solver.meter.spent.calls == 7 and "top_p" not in seen[-1] and "iterations" not in seen[-1]


def test_several_problems_are_asked_at_once(stub: Stub) -> None:
    """Each pays for its own answers, and is asked with its own seeds."""
    address, seen = stub(lambda asked: (200, said(" 1" * int(asked["prompt"][0]) + " </think> 2")))
    solver = EndpointSolver(address, "m", Marks())
    jobs = [lambda one, n=n: solve(one, f"{n}", "majority:2", generator=n) for n in (1, 5)]
    found = list(solve_together(solver, jobs))
    assert [(each.cost.tokens, each.cost.calls, each.answer) for each in found] == [(6, 2, "2"), (14, 2, "2")]
    assert len({asked["seed"] for asked in seen}) == 4 and solver.meter.spent.calls == 0


def test_servers_that_do_not_say_which_stop(stub: Stub) -> None:
    """The whole text is asked for, once more the first time, and the branch stops behind the mark, where the model did
    not end; all that was written is paid for."""
    address, seen = stub(lambda asked: (200, said(" a" if "stop" in asked else " a <step> b c")))
    solver = EndpointSolver(address, "m", Marks())
    for calls in (2, 3):
        (branch,) = solver.write([solver.begin("p")], Manner(limit=9), ["<step>"])
        assert branch.text == "a <step>" and branch.at("<step>") and not branch.ended
        assert len(seen) == solver.meter.spent.calls == calls
    assert solver.meter.spent.tokens == 1 + 4 + 4


def test_servers_that_take_no_log_probabilities(stub: Stub) -> None:
    """They are asked without, once and for all, and words stand for tokens."""
    address, seen = stub(lambda asked: (400, "{}") if "logprobs" in asked else (200, said(" a b c")))
    solver = EndpointSolver(address, "m", Marks(), retries=0)
    (branch,) = solver.write([solver.begin("p")], Manner(limit=9))
    assert [token.text for token in branch.tokens] == [" a", " b", " c"] and branch.ended
    solver.write([solver.begin("p")], Manner(limit=9))
    assert ["logprobs" in asked for asked in seen] == [True, False, False]


def told(*pairs: tuple[str, Any]) -> dict[str, Any]:
    """The part of an answer that says how likely its tokens were."""
    return {"logprobs": {"tokens": [token for token, _ in pairs], "token_logprobs": [chance for _, chance in pairs]}}


def test_probabilities_of_what_a_text_leaves_out(stub: Stub) -> None:
    """A stop of several tokens, one that begins within a token, one of which nothing is told, the end of an answer, and
    a character of two tokens: each keeps what is told of it, and the mark is the last that was written."""
    cases = [
        (" a", [(" a", -1.0), ("<st", -2.0), ("ep>", -3.0)], [(" a", -1.0), ("", -2.0), ("<step>", -3.0)]),
        (" a.", [(" a", -1.0), (".<step>", -2.0)], [(" a", -1.0), (".", -2.0), ("<step>", None)]),
        (" a", [(" a", -1.0)], [(" a", -1.0), ("<step>", None)]),
        (" y ", [("y", -1.0), ("<step>", -2.0)], [(" y", -1.0), (" <step>", -2.0)]),
        ("", [], [("<step>", None)]),
        (" é", [(" \ufffd", -1.0), ("\ufffd", -2.0)], [("", -1.0), (" é", -2.0), ("<step>", None)]),
        (" é b", [(" \ufffd", -1.0), (" b", 1e-9)], [("", -1.0), (" é b", 0.0), ("<step>", None)]),
    ]  # fmt: skip
    for text, pairs, expected in cases:
        address, _ = stub(lambda _, text=text, pairs=pairs: (200, said(text, stop_reason="<step>", **told(*pairs))))
        solver = EndpointSolver(address, "m", Marks())
        (branch,) = solver.write([solver.begin("p")], Manner(limit=9), ["<step>"])
        assert [(token.text, token.log_probability) for token in branch.tokens] == expected and branch.at("<step>")
    address, _ = stub(lambda _: (200, said(" a", stop_reason=None, **told((" a", -1.0), ("<end>", -3.0)))))
    assert solve(EndpointSolver(address, "m", Marks()), "1", "best_of_n:1").trace[0].score == pytest.approx(exp(-2))


@pytest.mark.parametrize("strategy", ["best_of_n:2", "beam:2,width=2", "self_backtracking:2"])
@pytest.mark.parametrize("answer", [{}, told((" x", -1.0)), told((" a", None))], ids=["none", "of others", "null"])
def test_rankings_need_probabilities(stub: Stub, strategy: str, answer: dict[str, Any]) -> None:
    """Guards choices by what nobody told: with nothing to go by all texts would be as likely, and the first would win.
    A vote counts answers, and needs none."""
    address, _ = stub(lambda _: (200, said(" a <backtrack> b", stop_reason=None, **answer)))
    solver = EndpointSolver(address, "m", Marks())
    with pytest.raises(ValueError, match=r"^this writer does not tell how likely its tokens are .*: take another"):
        solve(solver, "1", strategy)
    assert solve(solver, "1", "majority:2").text == "a <backtrack> b"


@pytest.mark.parametrize("chance", ["NaN", "Infinity", "-Infinity", "1" + "0" * 400, "5000.0", "true"])
def test_probabilities_that_are_none(stub: Stub, chance: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that tells no log-probabilities under that name answers nonsense: no traceback, and no JSON with NaN."""
    address, _ = stub(lambda _: (200, said(" a", **told((" a", 77.5))).replace("77.5", chance)))
    line = ["solve", "--prompt", "1", "--endpoint", address, "--model", "m", "--strategy", "best_of_n:2", "--json"]
    assert main(line) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "answers nonsense: the log-probability of a token is " in err


@pytest.mark.parametrize(
    "more",
    [{"usage": {"completion_tokens": 33}}, told(*[(" a", -1.0)] * 33), {}],
    ids=["counted", "told", "text"],
)
def test_a_server_that_does_not_keep_to_max_tokens(stub: Stub, more: dict[str, Any]) -> None:
    """Guards answers that are no bounded ones, and the time that they take; a few tokens more, as others count them, or
    long ones, are an answer."""

    def solved(text: str, more: dict[str, Any]) -> Any:
        whole = {**json.loads(said(text, **{name: more[name] for name in more if name == "logprobs"})), **more}
        address, _ = stub(lambda _: (200, json.dumps(whole)))
        return solve(EndpointSolver(address, "m", Marks()), "1", "chain", max_new_tokens=16)

    with pytest.raises(EndpointError, match=r"wrote (33 tokens|200000 characters) where 16 tokens were asked for: it "):
        solved(" a" * (33 if more else 100_000), more)
    assert solved(f" {'a' * 1000}" * 4, {"usage": {"completion_tokens": 18}}).cost.tokens == 18


NONSENSE = {
    "no JSON": "<html>busy</html>",
    "null": "null",
    "a list": "[1, 2]",
    "no choices": "{}",
    "no choice": json.dumps({"choices": []}),
    "two choices": json.dumps({"choices": [{"text": "a", "finish_reason": "stop"}] * 2}),
    "choices of text": json.dumps({"choices": "abc"}),
    "a choice of null": json.dumps({"choices": [None]}),
    "no text": said(None),
    "a number for text": said(7),
    "an unknown end": said("a", "tired"),
    "an end of numbers": said("a", [1]),
}


@pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_one_line(stub: Stub, text: str) -> None:
    """Whatever a server says instead of an answer: one line, short, and not asked again."""
    address, seen = stub(lambda _: (200, text))
    with pytest.raises(
        EndpointError, match=r"^http://127.0.0.1:\d+/v1 answers nonsense: .*OpenAI-compatible"
    ) as caught:
        solve(EndpointSolver(address, "m", Marks()), "1", "chain")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 and len(seen) == 1


def test_a_server_that_is_down_busy_or_slow(stub: Stub) -> None:
    """Each is asked again, a bounded number of times, and ends as one line that says so."""
    with pytest.raises(EndpointError, match=r"^http://127.0.0.1:9/v1 cannot be reached \(.*\), asked 2 times; is the "):
        solve(EndpointSolver("http://127.0.0.1:9/v1", "m", Marks(), retries=1), "1", "chain")
    address, seen = stub(lambda _: (503, '{"error": {"message": "too\\nbusy"}}'))
    with pytest.raises(EndpointError, match=r"refuses with status 503: .*busy") as caught:
        solve(EndpointSolver(address, "m", Marks(), retries=1), "1", "chain")
    assert len(seen) == 2 and "\n" not in str(caught.value)
    address, seen = stub(lambda _: (time.sleep(0.5), (200, said("late")))[1])
    with pytest.raises(EndpointError, match=r"gave no answer within 0.1 s, asked once; ask for less"):
        solve(EndpointSolver(address, "m", Marks(), timeout=0.1, retries=0), "1", "chain")


def test_iterations_of_servers_that_do_not_know_them(stub: Stub) -> None:
    """A server that drops the field would be measured at a depth that it never had."""
    address, _ = stub(lambda _: (200, said("a")))
    with pytest.raises(EndpointError, match=r"does not say that it thought as long as it was asked to"):
        solve(EndpointSolver(address, "m", Marks()), "1", "chain", iterations=4)


def test_what_a_server_cannot_do_is_said_before_it_is_asked(stub: Stub) -> None:
    """Guards tokens that are paid for and thrown away; and an exit rule, which goes along as text where budget forcing
    leaves it as it is."""
    address, seen = stub(lambda _: (200, json.dumps({**json.loads(said("a")), "mull": {"iterations": 2}})))
    solver = EndpointSolver(address, "m", Marks())
    for strategy, message in (
        ("budget_forcing:1,put=random", "has no vocabulary to draw from"),
        ("best_of_n:2,scorer=settled", "this writer has no residuals"),
        ("best_of_n:2,scorer=process", "no process reward"),
        ("thought_switching:3:4", "does not show its logits"),
    ):
        with pytest.raises(ValueError, match=message):
            solve(solver, "1", strategy, exit="latent:0.1")
    assert not seen
    assert solve(solver, "1", "budget_forcing:0", exit="latent:0.1").text == "a" and seen[0]["exit"] == "latent:0.1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"endpoint": "127.0.0.1:8000", "model": "m"}, r"'?127.0.0.1:8000'? is no address of a server; write http://"),
        ({"endpoint": "file:///etc/passwd", "model": "m"}, r"is no address"),
        ({"endpoint": "http://127.0.0.1:1/v1"}, r"may have several models: name one with --model"),
        ({"endpoint": "http://127.0.0.1:1/v1", "model": "m", "folder": "text"}, r"text and an endpoint cannot both"),
        (
            {"endpoint": "http://127.0.0.1:abc/v1", "model": "m"},
            r"127.0.0.1:abc/v1'? is no address of a server; write ",
        ),
        ({"endpoint": "http://127.0.0.1:99999/v1", "model": "m"}, r"is no address of a server; write "),
        ({"endpoint": "http://a b/v1", "model": "m"}, r"is no address of a server; write "),
        ({"endpoint": "http://127.0.0.1:1/v1", "model": "m", "timeout": 0}, r"a timeout of 0 s and 2 retries"),
        ({"endpoint": "http://127.0.0.1:1/v1", "model": "m", "timeout": 1e20}, r"a timeout of 1e\+20 s and 2 retries"),
        ({"folder": "text", "timeout": 0}, r"a timeout of 0 s and 2 retries"),
        ({"folder": "text", "model": "m"}, r"--model m is the name of a model behind an endpoint"),
        ({}, r"nobody is named to write"),
        ({"folder": "nowhere"}, r"there is no checkpoint folder nowhere"),
    ],
)
def test_bad_words_are_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        solver_from(**given)


@pytest.mark.parametrize("key", ["sk-SE\rCRET", "sk-SE\nCRET", "sk-SECR\u00c9T", "sk-SE\tCRET"])
def test_a_key_is_never_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a secret that a header cannot hold, which would stand in the error of whoever tries to send it."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match=r"^the variable OPENAI_API_KEY holds characters that no header can") as caught:
        solver_from(endpoint="http://127.0.0.1:1/v1", model="m")
    assert "SE" not in str(caught.value).replace("OPENAI_API_KEY", "") and caught.value.__cause__ is None


def test_a_key_out_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an editor leaves behind it is no part of a key."""
    monkeypatch.setenv("OPENAI_API_KEY", " sk-SECRET\r\n")
    assert EndpointSolver("http://127.0.0.1:1/v1", "m").client.api_key == "sk-SECRET"


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": -1.0}, {"temperature": 1.0, "top_p": 0.0}, {"temperature": 1.0, "top_p": 2.0}, {"top_k": 3},
        {"temperature": float("nan")}, {"temperature": "a"}, {"exit": "nonsense"}, {"exit": "latent:nan"}, {"exit": 3},
    ],
    ids=str,
)  # fmt: skip
def test_options_are_checked_as_for_folders(model: Any, stub: Stub, given: dict[str, Any]) -> None:
    """Guards draws that a server may take for others, silently: the words are those of a folder, before it is asked."""
    address, seen = stub(lambda _: (200, said("a")))
    words = []
    for solver in (FolderSolver(model), EndpointSolver(address, "m", Marks())):
        with pytest.raises(ValueError) as caught:
            solve(solver, "1", "chain", **given)
        words.append(str(caught.value))
    assert words[0] == words[1] and not seen


def test_budget_forcing_on_depth(model: Any, address: str) -> None:
    """Guards the exit rule that a strategy has changed: it goes along as text, which the server reads as the same."""
    folder, endpoint = FolderSolver(model), EndpointSolver(address, "tiny", Marks())
    strategy, rule = "budget_forcing:0,least=2,most=3", "latent:1e9"
    here, there = (solve(each, "1 + 2 = ?", strategy, exit=rule, max_new_tokens=12) for each in (folder, endpoint))
    assert there.text == here.text and here.cost.iterations == 2 * here.cost.read
    assert here.text != solve(folder, "1 + 2 = ?", "budget_forcing:0,most=3", exit=rule, max_new_tokens=12).text
    assert choose_exit(model, written_out(parse("kl:0.001,every=2"))) == parse("kl:0.001,every=2")


def test_marks_of_a_file(tmp_path: Path) -> None:
    """Read as what a stranger may have made."""
    (tmp_path / "marks.json").write_text('{"wait": "Hmm", "step": "\\n"}')
    found = read_marks(tmp_path / "marks.json")
    solver = solver_from(endpoint="http://127.0.0.1:1/v1", model="m", marks=found)
    assert (solver.marks.wait, solver.marks.step, solver.marks.switch) == ("Hmm", "\n", "Alternatively")
    for text in ("[1]", "{", '{"hmm": "x"}', '{"wait": 3}', '{"step": ""}'):
        (tmp_path / "marks.json").write_text(text)
        with pytest.raises(ValueError, match=r"marks.json names no marks: "):
            read_marks(tmp_path / "marks.json")
    with pytest.raises(ValueError, match=r"there is no file .*other.json of marks"):
        read_marks(tmp_path / "other.json")


def test_pieces() -> None:
    """Words make up the text again, and what stands behind a mark is dropped, within a piece too."""
    for text in ("", " ", "a", " a  b\n\nc ", "\n\n"):
        assert "".join(words(text)) == text
    pieces = [(" a", -1.0), (" b\n\nc", -2.0), (" d", -3.0)]
    assert up_to("x", pieces, ["\n\n", "d"]) == ([(" a", -1.0), (" b\n\n", -2.0)], True)
    assert up_to("x\n", [("\nb", 0.0)], ["\n\n"]) == ([("\n", 0.0)], True)  # it began before
    assert up_to("x\n\n", pieces[:1], ["\n\n"]) == (pieces[:1], False)  # it was there before
    assert up_to("", pieces, ()) == (pieces, False)


def test_the_command_asks_it_too(model: Any, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """mull solve in place of a folder: the answer of the folder, and a cost that says what nobody knows."""
    line = ["solve", "--endpoint", address, "--model", "tiny", "--marks", "mull", "--prompt", PROBLEMS[0]]
    assert main([*line, "--iterations", "2", "--max-new-tokens", "9"]) == 0
    out = capsys.readouterr().out
    expected = solve(FolderSolver(model), PROBLEMS[0], "chain", iterations=2, max_new_tokens=9)
    assert expected.text in out and "cost      FLOPs not known, 9 tokens written" in out
    for arguments, says in (
        (["solve", "--prompt", "1"], "nobody is named to write"),
        (["solve", "--prompt", "1", "--endpoint", address], "name one with --model NAME"),
        ([*line, "--strategy", "thought_switching:3:4"], "show its logits"),
        ([*line, "--strategy", "best_of_n:2,scorer=settled"], "settled"),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("mull: error: ") and err.count("\n") == 1 and says in err


def test_a_comparison_of_a_server_is_that_of_its_folder(model: Any, address: str, tmp_path: Path) -> None:
    """mull compare through the official client, at two depths: every text, answer and count of tokens of every cell
    is what the same model in this process gives; its FLOPs nobody knows."""
    folder = tmp_path / "tiny"
    mull.save(model, folder, model.tokenizer)
    lines = [{"problem": text, "answer": str(at), "difficulty": 1 + at % 2} for at, text in enumerate(PROBLEMS)]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, lines)))
    line = ["--problems", str(tmp_path / "problems.jsonl"), "--strategies", "direct;chain"]
    line += ["--iterations", "1,4", "--max-new-tokens", "9", "--dtype", "float64"]
    server = ["--endpoint", address, "--model", "tiny", "--marks", "mull"]
    assert main(["compare", str(folder), *line, "--output", str(tmp_path / "here")]) == 0
    assert main(["compare", *server, *line, "--output", str(tmp_path / "there")]) == 0
    here, there = (json.loads((tmp_path / name / "compare.json").read_text())["rows"] for name in ("here", "there"))
    assert len(here) == len(there) == 2 * 2 * 2
    for one, other in zip(here, there, strict=True):
        same = ("strategy", "iterations", "difficulty", "accuracy", "tokens_per_problem", "calls_per_problem")
        assert {name: one[name] for name in same} == {name: other[name] for name in same}
        assert one["flops_per_problem"] > 0 and other["flops_per_problem"] is None

    def texts(name: str) -> dict[str, list[tuple[str, str]]]:
        cells = [json.loads(path.read_text())["cell"] for path in (tmp_path / name / "cells").glob("[cd]*.json")]
        found = {}
        for cell in map(json.loads, cells):
            place = {field: cell["place"][field] for field in ("strategy", "iterations", "difficulty")}
            found[str(place)] = [(each["text"], each["answer"]) for each in cell["answered"]]
        return found

    assert texts("here") == texts("there") and len(set(map(str, texts("here").values()))) == 8
