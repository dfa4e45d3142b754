"""`mull compare` from its command line: what it measures, that nothing is measured twice, and mistakes in one line."""

import json
import shutil
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import mull
from mull.cli import main
from mull.inference.strategies import Marks
from mull.inference.strategies.endpoint import EndpointSolver
from mull.inference.strategies.loading import solver_from
from mull.inference.strategies.solver import seed_of
from mull.inference.strategies.solving import solve
from mull.training.comparing import measuring
from mull.training.comparing.measuring import key_of
from mull.training.comparing.problems import of_folder
from mull.training.data import ModChain

WORDS = [*"0123456789+=?", *(text for text in vars(Marks()).values() if text.strip()), "<unk>", "<end>"]
Run = Callable[..., tuple[int, str, str]]


def small(vocabulary: int, loop: bool, end: int) -> Any:
    torch.manual_seed(5)
    sizes = {"vocab_size": vocabulary, "d_model": 24, "n_heads": 3, "n_kv_heads": 3, "d_ff": 32, "max_length": 96}
    if loop:
        depth = {"n_prelude": 1, "n_core": 1, "n_coda": 1, "mean_iterations": 2}
        return mull.RecurrentDepthTransformer(mull.RecurrentDepthConfig(**sizes, **depth, stop_tokens=(end,)))
    return mull.Transformer(mull.TransformerConfig(**sizes, n_layers=2, stop_tokens=(end,)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders, one with a loop and one without, and a file of problems, two of each difficulty."""
    folder = tmp_path_factory.mktemp("compare")
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    for name, loop in (("loop", True), ("twin", False)):
        mull.save(small(len(WORDS), loop, len(WORDS) - 1), folder / name, tokenizer)
    lines = [{"problem": f"{n} + {n} = ?", "answer": n, "difficulty": 1 + n % 2} for n in range(4)]
    (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command, in the folder of both; gives its status and what it wrote on both streams."""
    monkeypatch.chdir(place)
    usual = ["--problems", "problems.jsonl", "--max-new-tokens", "8", "--strategies", "direct;chain"]

    def command(*words: str, plain: bool = False) -> tuple[int, str, str]:
        status = main(["compare", *([] if plain else usual), *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


def test_every_cell_is_what_solve_says(run: Run, place: Path, tmp_path: Path) -> None:
    """Rows in the promised form, from the answers that mull.solve gives to each problem with its seed; a model without
    a loop has one depth; the files are there."""
    status, out, _ = run("loop", "twin", "--iterations", "1,2", "--output", str(tmp_path), "--json", "--seed", "3")
    found = json.loads(out)
    assert status == 0 and found == json.loads((tmp_path / "compare.json").read_text())
    rows = {(row["folder"], row["strategy"], row["iterations"], row["difficulty"]): row for row in found["rows"]}
    assert len(rows) == 2 * 2 * 2 + 2 * 2 and all(row["examples"] == 2 for row in rows.values())
    solver = solver_from(place / "loop")
    lines = [json.loads(line) for line in (place / "problems.jsonl").read_text().splitlines()]
    for strategy, count, difficulty in (("chain", 2, 1), ("direct", 1, 2)):
        asked = [line for line in lines if line["difficulty"] == difficulty]
        costs = [
            solve(
                solver, line["problem"], strategy, generator=seed_of((3,), n), iterations=count, max_new_tokens=8
            ).cost
            for n, line in enumerate(asked)
        ]
        row = rows["loop", strategy, count, difficulty]
        assert row["flops_per_problem"] == pytest.approx(sum(cost.flops for cost in costs) / 2)
        assert row["tokens_per_problem"] == sum(cost.tokens for cost in costs) / 2 and row["calls_per_problem"] == 1
    assert rows["twin", "chain", None, 1]["flops_per_problem"] > 0
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "compare.csv").read_text().splitlines()) == 1 + len(rows)
    assert {"exchange", "envelope", "owners", "metrics", "settings", "command"} <= found.keys()


def test_an_answer_that_is_put_right_is_judged_anew(run: Run, tmp_path: Path) -> None:
    """Guards files of problems that somebody keeps: cells that were measured by other answers do not count."""
    file, found = tmp_path / "p.jsonl", []
    line = ["loop", "--problems", str(file), "--strategies", "direct", "--iterations", "1", "--json"]
    for answer in ("none of these", "none of these", None):
        answers = {"answer": answer if answer is not None else found[0]["answers"][0]}
        file.write_text(json.dumps({"problem": "1 + 1 =", **answers}))
        status, out, err = run(*line, "--output", str(tmp_path / "out"))
        [cell] = [
            json.loads(each.read_text())["cell"]
            for each in (tmp_path / "out" / "cells").glob("*.json")
            if "answered" in each.read_text()
        ]
        said = json.loads(cell)["answered"][0]["answer"]
        found.append({"row": json.loads(out)["rows"][0], "err": err, "answers": [said]})
        assert status == 0
    assert [each["row"]["accuracy"] for each in found] == [0, 0, 1]
    assert "1 of 1 cells are there already" in found[1]["err"] and "already" not in found[2]["err"]


def test_nothing_is_measured_twice(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same line again measures nothing; further cells are added; a damaged one is measured anew; an interrupt
    keeps what is finished; other options are refused."""
    solved: list[str] = []

    def counting(solver: Any, problem: Any, strategy: Any, **how: Any) -> Any:
        solved.append(problem.text)
        if len(solved) == stop:
            raise KeyboardInterrupt
        return solve(solver, problem, strategy, **how)

    monkeypatch.setattr(measuring, "solve", counting)
    line, stop = ["loop", "--iterations", "1,2", "--difficulty", "1", "--output", str(tmp_path / "a")], 5
    assert run(*line)[0] == 130 and len(list((tmp_path / "a" / "cells").glob("*.json"))) == 1 + 2
    stop, before = 0, len(solved)
    status, out, err = run(*line)
    assert status == 0 and len(solved) - before == 4 and "2 of 4 cells are there already" in err
    first = (tmp_path / "a" / "compare.json").read_text()
    before = len(solved)
    assert run(*line)[0:2] == (0, out) and len(solved) == before
    assert (tmp_path / "a" / "compare.json").read_text() == first
    cell = next((tmp_path / "a" / "cells").glob("chain_2_1-*.json"))
    cell.write_bytes(cell.read_bytes()[:-20])
    assert run(*line)[0] == 0 and len(solved) - before == 2
    assert run(*line[:-4], "--difficulty", "1,2", "--output", str(tmp_path / "a"))[0] == 0
    assert len(solved) - before == 2 + 8
    for option, value, was in (
        ("--seed", "1", "seed 0"),
        ("--examples", "1", "examples 300"),
        ("--top-k", "3", "top_k"),
    ):
        status, _, err = run(*line, option, value)
        assert status == 2 and err.count("\n") == 1 and f"holds a comparison with {was}" in err


def test_metrics_on_request(run: Run, tmp_path: Path) -> None:
    """Of papers, in the JSON and as tables; those that lack what they need say so."""
    more = ["--strategies", "draft;chain", "--metrics", "all", "--output", str(tmp_path)]
    status, out, _ = run("loop", "--iterations", "1,2", *more)
    found = json.loads((tmp_path / "compare.json").read_text())["metrics"]
    assert status == 0 and list(found) == ["s1", "underthinking", "bins", "drafts"]
    assert {row["knob"] for row in found["s1"]} == {"iterations"} and len(found["drafts"]) == 4
    assert "underthinking: nothing to say" in out and "tokens of" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loop", "--strategies", "directly"], "strategy 'directly' is not known"),
        (["loop", "--strategies", ";"], "names none; write"),
        (["loop", "--strategies", "chain; chain"], "the strategy chain is there twice"),
        (["loop", "--strategies", "majority; majority:16"], "majority:16 is there twice in --strategies, the other"),
        (["loop", "--strategies", "beam:4,width=2;beam,width=2,n=4"], "the other time as beam:4,width=2: name it once"),
        (["loop", "--strategies", "beam:4,scorer=process;beam:4,scorer=process:0"], "the other time as beam:4,sc"),
        (["loop", "--strategies", "chain:3,x=1"], "chain"),
        (["loop", "./loop"], "a folder is there twice in loop ./loop"),
        ([], "nobody is named to write"),
        (["nowhere"], "there is no checkpoint folder nowhere"),
        (["loop", "--model", "m"], "add --endpoint"),
        (["loop", "parity"], "parity: the tokenizer of this model has no <chain>"),
        (["loop", "--endpoint", "x", "--model", "m"], "is no address of a server"),
        (["loop", "--task", "loop"], "are two sources: give one"),
        (["loop", "--problems", "none.jsonl"], "there is no file none.jsonl of problems"),
        (["loop", "--difficulty", "7"], "has no problems of difficulty 7"),
        (["loop", "--metrics", "s2"], "invalid list of s1, underthinking, bins, drafts; value: 's2'"),
        (["loop", "--exit", "nothing:1"], "nothing"),
        (["loop", "--marks", "none.json"], "there is no file none.json of marks"),
        (["twin", "--exit", "latent:0.1"], "--exit latent:0.1 leaves a loop early, and nobody here has a loop: leave"),
        (["loop", "--iterations", "0"], "invalid list of integers from 1"),
        (["loop", "--output", "problems.jsonl"], "problems.jsonl is a file; name a folder with --output"),
    ],
)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, words: list[str], said: str) -> None:
    """Exit status 2, one line that names what is wrong, nothing written."""
    output = tmp_path / "out"
    status, out, err = run("--output", str(output), *words)
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("mull: error: ")
    assert said in err
    assert not output.exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "holds no JSON in line 2"),
        ("[]", "must hold an object with problem and answer"),
        ('{"problem": "1"}', "must hold an object with problem and answer"),
        ('{"problem": "1", "answer": "1", "hint": "1"}', "must hold an object"),
        ('{"problem": " ", "answer": "1"}', "must hold texts"),
        ('{"problem": "1", "answer": null}', "must hold texts"),
        ('{"problem": "1", "answer": " "}', "holds an empty answer in line 2"),
        ('{"problem": "1", "answer": "1", "difficulty": "4"}', "must hold an integer for difficulty in line 2"),
    ],
)
def test_files_of_problems(run: Run, tmp_path: Path, line: str, said: str) -> None:
    """A line that is no problem is named."""
    (tmp_path / "p.jsonl").write_text('{"problem": "1", "answer": "1"}\n' + line)
    status, _, err = run("loop", "--problems", str(tmp_path / "p.jsonl"), "--output", str(tmp_path / "out"))
    assert status == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chain;best_of_n:2,scorer=process"], "loop, best_of_n:2,scorer=process, 2 iterations, difficulty 1: scorer"),
        (["chain;majority:4", "--temperature", "0"], "loop, majority:4, 2 iterations, difficulty 1: strategy majority"),
        (["chain;beam:4,scorer=settled", "--iterations", "2,1"], "beam:4,scorer=settled, 1 iteration, difficulty 1: "),
        (["chain;budget_forcing:0,least=9", "--exit", "latent:0.1"], "least=9 is more than the 2 iterations that a to"),
        (["chain;budget_forcing:0,cap=6"], "cap=6 leaves no room for an answer within 8 new tokens"),
        (["majority:2;chain", "--top-k", "3"], "loop, chain, 2 iterations, difficulty 1: top_k 3 filters draws"),
        (["majority:2", "--top-p", "2"], "top_p 2.0 lies outside 0 < top_p <= 1"),
        (["chain", "--problems", "long.jsonl"], "loop, chain, 2 iterations, difficulty 9: the prompt has 101 p"),
        (["chain", "--problems", "styled.jsonl"], "the problem ends with the style <chain>: leave it out"),
    ],
)
def test_what_certainly_fails_is_said_before_anything_is_measured(
    run: Run, place: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    """Guards hours of other cells, and a folder that nobody needs: one line names the first cell that cannot be had,
    wherever it stands among the others, and nothing is written."""
    for name, last in (("long", "1 " * 100), ("styled", "1 <chain>")):
        lines = [{"problem": "1", "answer": 1, "difficulty": 1}, {"problem": last, "answer": 1, "difficulty": 9}]
        (place / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    strategies, *others = words
    status, out, err = run("loop", *others, "--strategies", strategies, "--output", str(tmp_path / "a"))
    assert status == 2 and out == "" and err.count("\n") == 1 and said in err and "; nothing was measured" in err
    assert not (tmp_path / "a").exists()


def test_what_is_kept_needs_nothing_any_more(run: Run, tmp_path: Path) -> None:
    """Guards comparisons that are added to: what cannot be had leaves the finished cells as they are, for the next
    line."""
    line = ["loop", "--iterations", "1", "--difficulty", "1", "--output", str(tmp_path / "a")]
    assert run(*line, "--strategies", "chain")[0] == 0
    status, _, err = run(*line, "--strategies", "chain;best_of_n:2,scorer=process")
    assert status == 2 and err.count("\n") == 1
    status, _, err = run(*line, "--strategies", "chain")
    assert status == 0 and "1 of 1 cells are there already" in err


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("nonsense", "answers nonsense"),
        ("slow", "gave no answer within 3 s, asked once"),
        ("gone", "cannot be reached"),
        ("busy", "refuses with status 503"),
    ],
)
def test_an_endpoint_that_fails_in_the_middle(run: Run, tmp_path: Path, failing: str, said: str) -> None:
    """Finished cells are kept, the end is one line, and the same line goes on when the server is well again."""
    pytest.importorskip("openai")
    state, well = {"left": 3, "asked": 0}, Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            about = {"id": "m", "object": "model", "created": 0, "owned_by": "mull", "mull": {"iterations": 4}}
            self.answer(200, json.dumps(about).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            state["left"], state["asked"] = state["left"] - 1, state["asked"] + 1
            choice = {"index": 0, "text": " 3 </think> 3", "finish_reason": "stop", "logprobs": None}
            body = {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
            body["mull"] = {"iterations": 4}
            if state["left"] >= 0:
                self.answer(200, json.dumps(body).encode())
            elif failing == "nonsense":
                self.answer(200, b"<html>gone</html>")
            elif failing == "busy":
                self.answer(503, b'{"error": {"message": "busy"}}')
            elif failing == "slow":
                well.wait(20)
            self.close_connection = True

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True, args=(0.05,)).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/v1"
        line = ["--endpoint", address, "--model", "m", "--output", str(tmp_path / "a"), "--retries", "0"]
        status, out, err = run(*line, "--timeout", "3" if failing == "slow" else "20")
        last = err.splitlines()[-1]
        assert status == 2 and out == "" and said in last and "1 of 4 cells are finished and kept" in last
        assert last.startswith(f"mull: error: m at {address}, chain, 4 iterations, difficulty 1: ") and len(last) < 500
        well.set()
        state["left"] = 100
        status, _, err = run(*line)
        assert status == 0 and "1 of 4 cells are there already" in err and state["asked"] == 4 + 6
    finally:
        server.shutdown()
        server.server_close()
    rows = json.loads((tmp_path / "a" / "compare.json").read_text())["rows"]
    assert [row["accuracy"] for row in rows] == [0.0, 0.0, 0.5, 0.5]  # it always says 3
    assert {row["flops_per_problem"] for row in rows} == {None} and rows[0]["tokens_per_problem"] == 3
    assert run(*line, "--difficulty", "1")[0] == 0  # all that it asks for is kept, with what the server said of itself
    status, _, err = run(*line, "--strategies", "direct;draft")
    assert status == 2 and "cannot be reached" in err and err.count("\n") == 1


def test_a_task_with_traces(run: Run, tmp_path: Path) -> None:
    """Held-out problems of the folder's own task, its checker, and its exact labels of steps."""
    task = ModChain(styles={"direct": 1, "chain": 1, "draft": 1})
    made = small(len(task.symbols), True, task.symbols.index("<end>"))
    mull.save(made, tmp_path / "chains", task.tokenizer)
    description = {
        "class_path": "mull.training.data.TaskData",
        "init_args": {
            "task": {"class_path": "mull.training.data.ModChain", "init_args": {"styles": {"direct": 1, "chain": 1}}},
            "difficulty": [2, 3],
        },
    }
    (tmp_path / "chains" / "training.yaml").write_text(json.dumps({"data": description}))
    asked = of_folder(tmp_path / "chains", None, 3, 7)
    assert asked.source == "task mod_chain" and list(asked.problems) == [2, 3]
    expected = task.problems("test", 7, 3, 2)
    assert [problem.text for problem in asked.problems[2]] == [problem.text for problem in expected]
    words = ["--strategies", "chain;majority:3", "--iterations", "2", "--examples", "3", "--max-new-tokens", "9"]
    words += ["--difficulty", "2", "--output", str(tmp_path / "a")]
    status, _, err = run(str(tmp_path / "chains"), *words, plain=True)
    assert status == 0, err
    cells = [json.loads(path.read_text()) for path in (tmp_path / "a" / "cells").glob("majority*.json")]
    (answers,) = [json.loads(cell["cell"])["answered"] for cell in cells]
    assert all(len(answer["samples"]) == 3 and answer["labels"] is not None for answer in answers)


def test_an_exit_rule_is_of_those_who_have_a_loop(run: Run, tmp_path: Path) -> None:
    """Guards the twin, which belongs into every comparison: it has no counts, and nothing to leave early."""
    line = ["loop", "twin", "--iterations", "1,2", "--difficulty", "1", "--strategies", "chain", "--json"]
    status, out, err = run(*line, "--exit", "latent:1e9", "--output", str(tmp_path / "a"))
    assert status == 0, err
    exits = {(row["folder"], row["iterations"]): row for row in json.loads(out)["rows"]}
    plain = {
        (row["folder"], row["iterations"]): row
        for row in json.loads(run(*line, "--output", str(tmp_path / "b"))[1])["rows"]
    }
    assert exits.keys() == plain.keys() == {("loop", 1), ("loop", 2), ("twin", None)}
    assert exits["twin", None]["flops_per_problem"] == plain["twin", None]["flops_per_problem"]
    assert exits["loop", 2]["flops_per_problem"] < plain["loop", 2]["flops_per_problem"]


def test_marks_are_for_who_is_not_mulls(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a model of mull beside another: words that its vocabulary lacks are no reason to refuse it, since they
    are the other's; where it writes alone they are its own."""
    (tmp_path / "marks.json").write_text('{"wait": "Hmm"}')
    given = ["--strategies", "budget_forcing:1", "--marks", str(tmp_path / "marks.json"), "--iterations", "1"]
    status, _, err = run("loop", *given, "--output", str(tmp_path / "a"))
    assert status == 2 and "has no token Hmm" in err
    seen = []
    monkeypatch.setattr(EndpointSolver, "mean_iterations", lambda _: None)
    monkeypatch.setattr("mull.training.comparing.command.check", lambda wanted, *_: seen.extend(wanted))
    monkeypatch.setattr("mull.training.comparing.command.measure", lambda *_: stop())
    run("loop", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", *given, "--output", str(tmp_path / "b"))
    marks = {writer.name.split(" ")[0]: writer.solver.marks for writer, _ in seen}
    assert marks["m"].wait == "Hmm" and marks["loop"] == Marks()


def stop() -> None:
    raise ValueError("far enough")


@pytest.mark.parametrize("file", ["tokenizer.model", "chat_template.jinja", "config.json"])
def test_a_folder_of_transformers_is_another_when_any_file_is(tmp_path: Path, file: str) -> None:
    """Guards cells against weights, templates and vocabularies that changed, in whatever files they are kept."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    before = key_of(tmp_path)
    assert key_of(tmp_path) == before
    (tmp_path / file).write_text('{"model_type": "llama", "hidden_size": 8}')
    assert key_of(tmp_path) != before
    assert key_of(tmp_path) != key_of(tmp_path, {"wait": "Hmm"}) != key_of(tmp_path, {"wait": "Oh"})


def test_a_folder_that_asks_nothing_is_told_with_what_helps_here(run: Run, place: Path, tmp_path: Path) -> None:
    """Guards remedies: the command has no --paths and no --trust."""
    line = ["--strategies", "chain", "--output", str(tmp_path / "a")]
    status, _, err = run("loop", *line, plain=True)
    assert (
        status == 2 and "training.yaml is missing, so there is no task to ask: name another folder with --task" in err
    )
    shutil.copytree(place / "loop", tmp_path / "texts")
    texts = {"data": {"class_path": "mull.training.data.TextData", "init_args": {"paths": ["x.txt"], "length": 8}}}
    (tmp_path / "texts" / "training.yaml").write_text(json.dumps(texts))
    status, _, err = run(str(tmp_path / "texts"), *line, plain=True)
    assert status == 2 and "texts was trained on texts, which ask no problems: name another folder with --task" in err
