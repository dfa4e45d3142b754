"""The official client against a real server: every answer is what `mull.generate` says alone."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mull
from mull.inference.early_exit import run_until
from mull.inference.exits import as_exit
from mull.inference.measure.settling import SETTLED
from mull.inference.serve.replies import Reply

PROMPT = "Tom has 3 apples and"


def alone(
    running: Any, name: str, prompt: Any, iterations: int | None, most: int, seed: int | None = None, **how: Any
) -> str:
    """The text that mull.generate gives for one prompt."""
    if seed is not None:
        how["generator"] = torch.Generator().manual_seed(seed)
    found = mull.generate(running.model(name), prompt, iterations, max_new_tokens=most, **how).text
    return found if isinstance(found, str) else found[0]


def test_models_are_listed(client: Any) -> None:
    """Guards /v1/models, with what mull adds: how deep, and how deep an effort."""
    listed = {each.id: each for each in client.models.list()}
    assert list(listed) == ["text", "parity", "inner-thinking", "plain"]
    one = client.models.retrieve("parity(high)")
    assert one.id == "parity" and one.mull["efforts"]["high"] == 32 and one.mull["efforts"]["max"] == 64
    assert listed["plain"].mull["iterations"] is None and listed["inner-thinking"].mull["capacity"] == 0.7


@pytest.mark.parametrize("asked", [{"model": "text(3)"}, {"model": "text", "extra_body": {"iterations": 3}}])
def test_chat(running: Any, client: Any, asked: dict[str, Any]) -> None:
    """Turns become a prompt as in `mull chat`: each on a line of its own, answers behind what they answered."""
    messages = [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": [{"type": "text", "text": "Tom has 3"}]},
        {"role": "assistant", "content": " apples."},
        {"role": "user", "content": "How many"},
    ]
    said = client.chat.completions.create(messages=messages, max_completion_tokens=12, user="me", **asked)
    expected = alone(running, "text", "Count.\nTom has 3 apples.\nHow many", 3, 12)
    assert said.choices[0].message.content == expected and said.choices[0].message.role == "assistant"
    assert said.choices[0].finish_reason == "length" and said.object == "chat.completion"
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (33, 12)
    assert said.usage.completion_tokens_details.reasoning_tokens == 0
    assert said.mull["iterations"] == said.mull["mean_iterations"] == 3 and said.model == asked["model"]


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({"reasoning_effort": "none"}, 1),
        ({"reasoning_effort": "low"}, 8),
        ({}, 16),
        ({"model": "parity(high)"}, 32),
        ({"model": "parity(max)"}, 64),
        ({"model": "parity(5)"}, 5),
        ({"model": "parity(high)", "reasoning_effort": "minimal"}, 2),
        ({"model": "parity(high)", "reasoning_effort": "minimal", "extra_body": {"iterations": 7}}, 7),
    ],
)
def test_depth(client: Any, asked: dict[str, Any], count: int) -> None:
    """Who says how long to think: the body's own field before the effort, and that before the name."""
    messages = [{"role": "user", "content": "1 0 1 1"}]
    said = client.chat.completions.create(**{"model": "parity", **asked}, messages=messages, max_tokens=4)
    assert said.mull["iterations"] == count and said.choices[0].finish_reason == "stop"


def test_completions_of_every_kind_of_prompt(running: Any, client: Any) -> None:
    """A text, texts, token ids, lists of ids; n answers to each, with seeds of their own."""
    for prompt in ("1 0 1 1", ["1 0 1 1", "1 1"], [4, 5, 4], [[4, 5, 4], [5, 5]]):
        said = client.completions.create(model="parity(20)", prompt=prompt, max_tokens=3, temperature=1, seed=5, n=2)
        listed = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        own = [each if isinstance(each, str) else torch.tensor([each]) for each in listed for _ in range(2)]
        expected = [
            alone(running, "parity", each, 20, 3, seed=5 + place, temperature=1.0) for place, each in enumerate(own)
        ]
        assert [choice.text for choice in said.choices] == expected
        assert [choice.index for choice in said.choices] == list(range(len(own)))


@pytest.mark.parametrize(
    ("name", "body", "how"),
    [
        ("text", {"exit": "latent:0.2", "iterations": 9}, {"exit": "latent:0.2", "iterations": 9}),
        ("text", {"exit": "argmax:-2", "iterations": 6}, {"exit": "argmax:-2", "iterations": 6}),
        ("inner-thinking", {"capacity": 0.5}, {"capacity": 0.5, "iterations": None}),
        ("inner-thinking", {"capacity": [0.9, 0.1], "iterations": 3}, {"capacity": (0.9, 0.1), "iterations": 3}),
        ("text", {"top_k": 5, "min_p": 0.05}, {"top_k": 5, "min_p": 0.05, "iterations": None}),
        ("plain", {}, {"iterations": None}),
    ],
)
def test_fields_of_mull(running: Any, client: Any, name: str, body: dict[str, Any], how: dict[str, Any]) -> None:
    """Exit rules, capacity and filters reach the model, and what was spent is told."""
    draws = {"temperature": 1.0, "seed": 3} if "top_k" in body else {}
    said = client.completions.create(model=name, prompt=PROMPT, max_tokens=10, extra_body=body, **draws)
    iterations = how.pop("iterations")
    assert said.choices[0].text == alone(running, name, PROMPT, iterations, 10, **how, **draws)
    spent = mull.generate(running.model(name), PROMPT, iterations, max_new_tokens=10, **how) if not draws else None
    if spent is not None:
        assert said.mull["mean_iterations"] == pytest.approx(float(spent.iterations.double().mean()))


def test_streams_say_the_same(running: Any, client: Any) -> None:
    """Chunks make up the whole, the last says what it took, and an answer of n has n streams."""
    asked = {"model": "text(4)", "max_tokens": 12, "temperature": 0.9, "seed": 8, "n": 2, "top_p": 0.9}
    chunks = list(
        client.chat.completions.create(
            messages=[{"role": "user", "content": PROMPT}], stream=True, stream_options={"include_usage": True}, **asked
        )
    )
    parts = [choice for chunk in chunks for choice in chunk.choices]
    for row in (0, 1):
        text = "".join(part.delta.content or "" for part in parts if part.index == row)
        assert text == alone(running, "text", PROMPT, 4, 12, seed=8 + row, temperature=0.9, top_p=0.9)
        assert [part.finish_reason for part in parts if part.index == row and part.finish_reason] == ["length"]
    assert chunks[-1].usage.completion_tokens == 24 and chunks[-1].mull["mean_iterations"] == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])
    texts = client.completions.create(model="text(4)", prompt=PROMPT, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in texts) == alone(running, "text", PROMPT, 4, 12)


def test_stop_strings(running: Any, client: Any) -> None:
    """What stands before the stop is told, nothing of it is: not in chunks, not among probabilities."""
    whole = alone(running, "text", PROMPT, 8, 24)
    for stop in (whole[3:6], ["never there", whole[7:9]], [whole[0:2]], whole[20] + "never"):
        said = client.completions.create(model="text", prompt=PROMPT, max_tokens=24, stop=stop, logprobs=0)
        expected = alone(running, "text", PROMPT, 8, 24, stop=stop)
        choice = said.choices[0]
        assert choice.text == expected and choice.finish_reason == ("stop" if expected != whole else "length")
        assert "".join(choice.logprobs.tokens) == expected
        met = next((each for each in ([stop] if isinstance(stop, str) else stop) if expected + each in whole), None)
        assert choice.stop_reason == (None if expected == whole else met)
        stream = client.completions.create(model="text", prompt=PROMPT, max_tokens=24, stop=stop, stream=True)
        chunks = list(stream)
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected
        assert chunks[-1].choices[0].stop_reason == choice.stop_reason
    assert alone(running, "text", PROMPT, 8, 24, stop=whole[3:6]) == whole[: whole.index(whole[3:6])]


def test_probabilities(running: Any, client: Any) -> None:
    """Those of the model itself, for the token that was taken and for the likeliest."""
    model = running.model("text")
    said = client.chat.completions.create(
        model="text(5)", messages=[{"role": "user", "content": PROMPT}], max_tokens=5, logprobs=True, top_logprobs=3,
        temperature=1, seed=1,
    )  # fmt: skip
    found = mull.generate(
        model, PROMPT, 5, max_new_tokens=5, temperature=1.0, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        log_p = model(found.tokens, 5).logits[0, -6:-1].log_softmax(-1)
    told = said.choices[0].logprobs.content
    taken = [float(log_p[place, token]) for place, token in enumerate(found.new_tokens[0])]
    assert [each.logprob for each in told] == pytest.approx(taken, abs=1e-9)
    best = log_p.topk(3).values.tolist()
    assert [[one.logprob for one in each.top_logprobs] for each in told] == [
        pytest.approx(row, abs=1e-9) for row in best
    ]
    assert "".join(each.token for each in told) == found.text and bytes(told[0].bytes).decode() == told[0].token
    plain = client.completions.create(model="text(5)", prompt=PROMPT, max_tokens=5, logprobs=2)
    assert [len(each) for each in plain.choices[0].logprobs.top_logprobs] == [2] * 5
    assert plain.choices[0].logprobs.text_offset == [0, 1, 2, 3, 4]


def test_bytes_that_are_no_character_have_names(client: Any, running: Any) -> None:
    """Guards log probabilities against bytes that look alike, of which the least likely overwrote the others."""
    model, start = running.model("text"), list("é".encode())[:1]
    said = client.completions.create(model="text(5)", prompt=start, max_tokens=1, logprobs=20).choices[0].logprobs
    with torch.no_grad():
        best = model(torch.tensor([start]), 5).logits[0, -1].log_softmax(-1).topk(20)
    assert list(said.top_logprobs[0].values()) == pytest.approx(best.values.tolist(), abs=1e-5)
    names = [model.tokenizer.decode([token]) for token in best.indices.tolist()]
    assert names.count("\ufffd") > 1 and "\ufffd" not in said.top_logprobs[0]
    assert said.tokens[0] == next(iter(said.top_logprobs[0]))
    alike: Any = SimpleNamespace(token=lambda _: "a")  # as where one begins a word
    assert Reply.named(alike, [(5, -0.1), (7, -3.0)]) == {"a": -0.1}


def test_rows_of_all_kinds_at_once(running: Any, client: Any) -> None:
    """Depths from 1 to 64, lengths, rules, seeds and models side by side: each answer is its own."""
    cases: list[tuple[str, str, int, int, dict[str, Any]]] = []
    for number, count in enumerate((1, 2, 3, 5, 7, 8, 33, 64)):
        prompt = PROMPT[: 3 + number] if number % 2 else PROMPT * (1 + number // 4)
        cases.append(
            ("text", prompt, count, 5 + number, {"temperature": 0.8, "seed": number} if number % 3 == 0 else {})
        )
    cases += [("text", PROMPT[:n], 12, 8, {"extra_body": {"exit": "latent:0.3"}}) for n in (4, 9, 14)]
    cases += [("inner-thinking", PROMPT[:n], 4, 8, {}) for n in (4, 9)]

    def ask(case: tuple[str, str, int, int, dict[str, Any]]) -> tuple[str, float]:
        name, prompt, count, most, how = case
        said = client.completions.create(model=f"{name}({count})", prompt=prompt, max_tokens=most, **how)
        return said.choices[0].text, said.mull["flops"]

    steps = running.service.metrics.steps
    with ThreadPoolExecutor(len(cases)) as pool:
        found = list(pool.map(ask, cases))
    for (text, flops), (name, prompt, count, most, how) in zip(found, cases, strict=True):
        own = {**how, **how.get("extra_body", {})}
        own.pop("extra_body", None)
        assert text == alone(running, name, prompt, count, most, **own), (name, prompt, count)
        if not own.get("exit") and name == "text":  # without a rule what it cost is known
            config, length = running.model(name).config, len(prompt)
            new = [config.flops_per_token(count, length + place) for place in range(1, most)]
            pieces = [min(64, length - start) for start in range(0, length, 64)]
            ends = [sum(pieces[: place + 1]) for place in range(len(pieces))]
            read = [size * config.flops_per_token(count, end) for size, end in zip(pieces, ends, strict=True)]
            assert flops == pytest.approx(sum(new) + sum(read))
    written = sum(case[3] for case in cases)
    assert running.service.metrics.steps - steps < written / 1.5  # rows shared batches


@pytest.mark.parametrize(
    ("name", "prompt", "iterations", "tokens", "rule", "settled"),
    [
        ("parity", "1 0 1 1", 40, 1, None, True),
        ("parity", "1 0 1 1 0 1 1 1 0 0 1 0 1 1 0 1", 6, 1, None, False),  # the last bit rests, and waits
        ("parity", " ".join("1011011" * 14), 32, 1, None, False),  # in pieces, of which the last rests
        ("text", PROMPT, 16, 3, None, True),
        ("text", PROMPT, 8, 5, None, False),  # a token of the prompt moves still, the last new one does not
        ("text", PROMPT, 32, 3, "latent:0.02", True),
        ("text", PROMPT, 32, 3, "latent:0.2", False),
        ("text", PROMPT, 8, 5, "latent:0.001", False),  # all at the limit, as above
    ],
)
def test_settled_is_of_all_that_an_answer_depends_on(
    running: Any, client: Any, name: str, prompt: str, iterations: int, tokens: int, rule: str | None, settled: bool
) -> None:
    """Told as `mull.generate` has it, of the last iteration of every state, prompt and answer."""
    found = mull.generate(
        running.model(name), prompt, iterations, exit=rule, max_new_tokens=tokens, stop_tokens=(), residuals=True
    )
    asked = {"iterations": iterations, **({"exit": rule} if rule else {})}
    said = client.completions.create(model=name, prompt=prompt, max_tokens=tokens, extra_body=asked)
    assert said.mull["settled"] is settled is bool(found.residuals[0, -1] < SETTLED)


def test_nobody_can_say_of_one_iteration(running: Any, client: Any) -> None:
    """Neither of an answer of one, nor of one that has a token in its prompt that left after one."""
    assert client.completions.create(model="parity(1)", prompt="1 0", max_tokens=1).mull["settled"] is None
    model, rule, prompt = running.model("text"), "confidence:0.5", "Natali"
    ids = torch.tensor([model.tokenizer.encode(prompt).ids])
    used = run_until(model, ids, 16, as_exit(rule))[0].iterations
    assert used.min() == 1 < used[0, -1]
    found = mull.generate(model, prompt, 16, exit=rule, max_new_tokens=1, residuals=True)
    assert found.residuals is not None and found.residuals.isnan().all()
    asked = {"exit": rule, "iterations": 16}
    said = client.completions.create(model="text", prompt=prompt, max_tokens=1, extra_body=asked)
    assert said.mull["settled"] is None
