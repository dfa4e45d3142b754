"""generate of transformers over mull's cache: the same tokens as mull's own, as without a cache, and as by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, pipeline

import mull
from mull.inference.hugging_face import MullCache

PROMPTS = {"parity": ["1 0 1 1 0", "1", "0 1 1"], "text": ["Tom has 3 apples.", "Ann", "Every day"]}
PROMPTS["inner-thinking"] = PROMPTS["text"]
FAMILIES = ["recurrent", "inner_thinking", "transformer"]
IDS = torch.tensor([[0, 0, 3, 1, 4], [0, 5, 9, 2, 6], [5, 3, 5, 8, 9]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])


def depth(family: str, iterations: int = 3) -> dict[str, Any]:
    return {} if family == "transformer" else {"iterations": iterations}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("parity", {}),
        ("parity", {"exit": "latent:0.05"}),
        ("text", {}),
        ("text", {"exit": "latent:0.1"}),
        ("inner-thinking", {"capacity": 0.4}),
        ("inner-thinking", {"capacity": [0.9, 0.5, 0.2], "iterations": 4}),
    ],
)
def test_tokens_are_those_of_mull(opened: Callable[[str], Any], name: str, options: dict[str, Any]) -> None:
    """Guards the claim: a batch padded on the left, at three depths and with every rule of depth, and each row alone,
    gives what mull.generate does."""
    model, tokenizer = opened(name)
    rows = tokenizer(PROMPTS[name], return_tensors="pt", padding=True)
    for iterations in [options["iterations"]] if "iterations" in options else [1, 3, 8]:
        asked: dict[str, Any] = options | {"iterations": iterations, "max_new_tokens": 10}
        wanted = mull.generate(model.mull, PROMPTS[name], **asked)
        found = model.generate(**rows, do_sample=False, **asked)[:, rows["input_ids"].shape[1] :]
        for row, text in enumerate(PROMPTS[name]):
            answer = wanted.new_tokens[row][wanted.iterations[row] > 0]
            assert torch.equal(found[row, : len(answer)], answer)
            assert (found[row, len(answer) :] == tokenizer.pad_token_id).all()
            if iterations == 3:
                alone = model.generate(**tokenizer(text, return_tensors="pt"), do_sample=False, **asked)
                assert torch.equal(alone[0, -len(answer) :], answer)


def test_without_a_mask_nothing_is_padding(opened: Callable[[str], Any]) -> None:
    """Guards prompts that begin with the token that also fills up: transformers would take it for padding."""
    model, tokenizer = opened("parity")
    rows = tokenizer(["1 0 1 1 0", "0 1 1 1 0"], return_tensors="pt")
    assert rows["input_ids"][0, 0] == tokenizer.pad_token_id == model.generation_config.pad_token_id
    scores = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 1}
    found = model.generate(rows["input_ids"], **scores).scores[0]
    assert torch.equal(found, model.generate(**rows, **scores).scores[0])


def test_pipelines(opened: Callable[[str], Any]) -> None:
    """Guards depth in a pipeline: as an argument, and as a field of GenerationConfig; and what it makes of the text."""
    model, tokenizer = opened("text")
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = PROMPTS["text"]
    greedy = {"do_sample": False, "max_new_tokens": 12}
    said = write(prompts, batch_size=3, iterations=2, **greedy)
    configured = write(prompts, generation_config=GenerationConfig(iterations=2, **greedy))
    wanted = mull.generate(model.mull, prompts, iterations=2, max_new_tokens=12)
    assert wanted.text is not None
    texts = [prompt + answer for prompt, answer in zip(prompts, wanted.text, strict=True)]
    assert [found[0]["generated_text"] for found in said] == texts
    assert [found[0]["generated_text"] for found in configured] == texts
    assert mull.generate(model.mull, prompts, iterations=8, max_new_tokens=12).text != wanted.text


def test_who_wins(wrapped: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the order: the call, then its GenerationConfig, then the model's, then the mean of training; read off what
    the network is asked for."""
    model = wrapped("recurrent")
    asked = []
    forward = model.mull.forward
    monkeypatch.setattr(model.mull, "forward", lambda ids, n=None, **kw: [asked.append(n), forward(ids, n, **kw)][1])

    def run(**options: Any) -> Any:
        asked.clear()
        model.generate(IDS, attention_mask=MASK, **options)
        return set(asked)

    config = GenerationConfig(iterations=5, max_new_tokens=2, do_sample=False)
    assert run(max_new_tokens=2) == {None} and model.config.mean_iterations == 3
    model.generation_config.iterations = 4
    assert run(max_new_tokens=2) == {4}
    assert run(generation_config=GenerationConfig(max_new_tokens=2)) == {4}
    assert run(generation_config=config) == {5}
    assert run(generation_config=config, iterations=6) == {6}
    assert config.iterations == 5 and model.generation_config.iterations == 4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}, {"prefill_chunk_size": 2}],
    ids=str,
)
def test_cached_is_uncached(wrapped: Callable[..., Any], family: str, options: dict[str, Any]) -> None:
    """Guards the cache behind transformers' interface, rows padded on the left, beams reordered; equal seeds."""
    model = wrapped(family)
    asked = {"attention_mask": MASK, "max_new_tokens": 7, **depth(family)} | options
    torch.manual_seed(1)
    cached = model.generate(IDS, **asked)
    asked.pop("prefill_chunk_size", None)
    torch.manual_seed(1)
    uncached = model.generate(IDS, **asked, use_cache=False)
    assert torch.equal(cached, uncached) and cached.shape[1] == 12


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_is_its_rows(wrapped: Callable[..., Any], family: str) -> None:
    """Guards positions, which do not count padding, in greedy and in beam search."""
    model = wrapped(family)
    for options in ({}, {"num_beams": 3}):
        asked = {"max_new_tokens": 6, **depth(family), **options}
        batch = model.generate(IDS, attention_mask=MASK, **asked)
        for row in range(3):
            alone = model.generate(IDS[row : row + 1][:, MASK[row] == 1], **asked)
            assert torch.equal(alone[0, -6:], batch[row, -6:])


def test_beams_are_those_written_by_hand(wrapped: Callable[..., Any]) -> None:
    """Guards reordering: the best of three beams of four tokens, found without a cache or any of transformers."""
    model = wrapped("recurrent")
    prompt = IDS[2:3]
    beams = [(0.0, prompt)]
    for _ in range(4):
        grown = []
        for score, ids in beams:
            p = model(ids, iterations=3).logits[0, -1].float().log_softmax(-1)
            grown += [(score + p[t].item(), torch.cat([ids, torch.tensor([[t]])], 1)) for t in range(11)]
        beams = sorted(grown, key=lambda beam: -beam[0])[:3]
    found = model.generate(prompt, iterations=3, num_beams=3, num_return_sequences=3, max_new_tokens=4)
    assert torch.equal(found, torch.cat([ids for _, ids in beams]))


@pytest.mark.parametrize("rule", ["latent:0.7", "fixed:2"])
def test_exits(wrapped: Callable[..., Any], rule: str) -> None:
    """Guards the policy under an exit: the deepest keys, as in mull.generate; cached, uncached, padded and in beams."""
    model = wrapped("recurrent")
    asked: dict[str, Any] = {"attention_mask": MASK, "iterations": 9, "exit": rule, "max_new_tokens": 6}
    cached = model.generate(IDS, **asked)
    assert torch.equal(cached, mull.generate(model.mull, IDS, **asked).tokens)
    assert torch.equal(cached, model.generate(IDS, **asked, use_cache=False))
    beams = [model.generate(IDS, **asked, num_beams=2, use_cache=use) for use in (True, False)]
    assert torch.equal(*beams)
    used = model(IDS, attention_mask=MASK, iterations=9, exit=rule).iterations
    assert used[MASK == 1].max() <= 9 and used[MASK == 1].min() < 9 and (used[MASK == 0] == 0).all()


def test_a_count_for_each_row(wrapped: Callable[..., Any]) -> None:
    """Guards tensors of counts through beams, which transformers repeats and reorders."""
    model, counts = wrapped("recurrent"), torch.tensor([1, 4, 2])
    batch = model.generate(IDS, attention_mask=MASK, iterations=counts, num_beams=2, max_new_tokens=5)
    for row in range(3):
        ids = IDS[row : row + 1][:, MASK[row] == 1]
        alone = model.generate(ids, iterations=int(counts[row]), num_beams=2, max_new_tokens=5)
        assert torch.equal(alone[0, -5:], batch[row, -5:])


def test_rows_end_at_the_length_of_the_model(wrapped: Callable[..., Any]) -> None:
    """Guards full rows, which must not stop the others: as mull.generate, whatever the cache and the beams."""
    model = wrapped("recurrent", max_length=8)
    asked: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 30}
    wanted = mull.generate(model.mull, IDS, **asked)
    assert (wanted.iterations > 0).sum(1).tolist() == [5, 4, 3]
    for options in ({}, {"use_cache": False}):
        found = model.generate(IDS, **asked, **options)
        assert found.shape == wanted.tokens.shape
        assert all(torch.equal(found[r, 5 : 10 - r], wanted.tokens[r, 5 : 10 - r]) for r in range(3))
    assert torch.equal(*[model.generate(IDS, **asked, num_beams=2, use_cache=use) for use in (True, False)])
    with pytest.raises(ValueError, match="the prompt has 8 positions, and the model's max_length is 8"):
        model.generate(torch.ones(1, 8, dtype=torch.int64))


def test_drafts_are_taken_back(wrapped: Callable[..., Any]) -> None:
    """Guards crop and assistants: prompt lookup and drafts write what plain decoding writes, an assistant thinks as
    long as its own configuration says, whatever the call says, or has no depth at all."""
    model, small, flat = wrapped("recurrent"), wrapped("recurrent"), wrapped("transformer")
    small.generation_config.iterations = 1
    asked, forward = [], small.mull.forward
    small.mull.forward = lambda ids, n=None, **kw: [asked.append(n), forward(ids, n, **kw)][1]
    prompt = IDS[2:3].repeat(1, 2)
    deep = GenerationConfig(iterations=4, max_new_tokens=12)
    plain = model.generate(prompt, iterations=4, max_new_tokens=12)
    assert torch.equal(plain, model.generate(prompt, iterations=4, max_new_tokens=12, prompt_lookup_num_tokens=3))
    for helper in (small, flat):
        assert torch.equal(plain, model.generate(prompt, iterations=4, max_new_tokens=12, assistant_model=helper))
    assert torch.equal(plain, model.generate(prompt, generation_config=deep, assistant_model=small))
    assert set(asked) == {1} and deep.iterations == 4


def test_drafts_end_at_the_length_of_the_model(wrapped: Callable[..., Any]) -> None:
    """Guards the last tokens of a full row: a draft goes no further than plain decoding, padding not counted. The head
    is made to write one token for ever, so that every draft is right and the last one would go beyond."""
    model = wrapped("recurrent", max_length=13, tie_embeddings=False)
    with torch.no_grad():
        model.mull.head.weight.zero_()  # all logits are equal: the first token, always
    for row in (1, 2):
        asked: dict[str, Any] = {"attention_mask": MASK[row : row + 1], "iterations": 2, "max_new_tokens": 30}
        plain = model.generate(IDS[row : row + 1], **asked)
        assert plain.shape == (1, 13 + int((MASK[row] == 0).sum()))
        for drafts in ({"prompt_lookup_num_tokens": 5}, {"assistant_model": copy.deepcopy(model)}):
            assert torch.equal(model.generate(IDS[row : row + 1], **asked, **drafts), plain)


def test_guidance_thinks_as_long_as_the_call(wrapped: Callable[..., Any]) -> None:
    """Guards guidance_scale, by hand: the prompt that is to be avoided is read at the same depth as the other."""
    model = wrapped("recurrent")
    prompt, avoided = IDS[2:3], IDS[1:2, 1:]
    asked = {"iterations": 5, "max_new_tokens": 2, "guidance_scale": 1.5, "negative_prompt_ids": avoided}
    found = model.generate(prompt, **asked, output_scores=True, return_dict_in_generate=True)
    for number, scores in enumerate(found.scores):
        new = found.sequences[:, 5 : 5 + number]
        with torch.no_grad():
            p, q = (
                model(torch.cat([ids, new], 1), iterations=5).logits[0, -1].float().log_softmax(-1)
                for ids in (prompt, avoided)
            )
        assert torch.allclose(scores[0].float(), q + 1.5 * (p - q), atol=1e-5)


def test_stop_strings(opened: Callable[[str], Any]) -> None:
    """Guards texts that end a row, which need the tokenizer beside them: as the stop of mull.generate, by row."""
    model, tokenizer = opened("text")
    rows = tokenizer(PROMPTS["text"], return_tensors="pt", padding=True)
    stops = {"stop_strings": ["e"], "tokenizer": tokenizer, "iterations": 2, "max_new_tokens": 16, "do_sample": False}
    wanted = mull.generate(model.mull, PROMPTS["text"], iterations=2, max_new_tokens=16, stop=["e"])
    for use_cache in (True, False):
        found = model.generate(**rows, **stops, use_cache=use_cache)[:, rows["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(found, skip_special_tokens=True)
        assert texts == [text + "e" for text in wanted.text or []]


def test_a_cache_goes_on(wrapped: Callable[..., Any]) -> None:
    """Guards a cache that is kept: the answer goes on from it, a copy of it stays as it was, and rows are chosen."""
    model = wrapped("recurrent")
    whole = model.generate(IDS, attention_mask=MASK, iterations=3, max_new_tokens=8)
    first = model.generate(IDS, attention_mask=MASK, iterations=3, max_new_tokens=4, return_dict_in_generate=True)
    assert isinstance(first.cache, MullCache) and first.cache.get_seq_length() == 8 and first.cache.batch_size == 3
    kept = copy.deepcopy(first.cache)
    mask = torch.cat([MASK, torch.ones(3, 4, dtype=torch.int64)], 1)
    asked = {"attention_mask": mask, "iterations": 3, "max_new_tokens": 4}
    assert torch.equal(model.generate(first.sequences, past_key_values=first.cache, **asked), whole)
    assert kept.get_seq_length() == 8 and torch.equal(model.generate(first.sequences, cache=kept, **asked), whole)
    kept.crop(-3)
    kept.batch_select_indices(torch.tensor([2]))
    kept.batch_repeat_interleave(2)
    out = model(whole[[2, 2], 9:10], cache=kept, iterations=3)
    assert kept.batch_size == 2 and torch.allclose(out.logits[1], model(whole[2:3, :10], iterations=3).logits[:, -1])
    with pytest.raises(ValueError, match="an exit rule needs a cache of policy deepest"):
        model(whole[[2, 2], 10:11], cache=kept, iterations=3, exit="latent:0.1")
    with pytest.raises(ValueError, match="generate_batch is refused: mull's cache is its own"):
        model.generate_batch([[1, 2]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iterations": 0}, "iterations must be at least 1, not 0"),
        ({"iterations": 2.5}, "iterations must be an integer of at least 1, not 2.5"),
        ({"iterations": torch.tensor([1, 2])}, r"one integer per row, shape \(3,\)"),
        ({"exit": "latnt:1"}, "exit 'latnt' is not known; known are latent"),
        ({"capacity": 0.5}, "has no routed passes: capacity=0.5 is refused"),
        ({"cache_implementation": "static"}, "cache_implementation 'static' is refused"),
        ({"cache": DynamicCache()}, "cache must be a MullCache, not a DynamicCache"),
        ({"assistant_early_exit": 1}, "assistant_early_exit=1 is refused: a loop has no layers to stop at"),
        ({"inputs_embeds": torch.zeros(3, 5, 24)}, "inputs_embeds is refused: a mull model reads token ids"),
        ({"attention_mask": MASK.flip(1)}, "padded on the right; generate needs padding_side='left'"),
        ({"generation_config": GenerationConfig(exit="latent:x")}, "latent"),
        ({"iteration": 4}, "not used by the model: .'iteration'"),
    ],
    ids=str,
)
def test_wrong_values(wrapped: Callable[..., Any], options: dict[str, Any], words: str) -> None:
    """Guards refusals: one line that names the value, before anything is written."""
    with pytest.raises(ValueError, match=words):
        wrapped("recurrent").generate(IDS, **{"attention_mask": MASK, "max_new_tokens": 2} | options)
    if "generation_config" not in options and "iteration" not in options:
        with pytest.raises(ValueError, match="has no loop: iterations=2 is refused"):
            wrapped("transformer").generate(IDS, iterations=2)


def test_what_has_no_order_writes_nothing(opened: Callable[[str], Any]) -> None:
    """Guards models that answer in place: forward as mull's, generate and labels refused."""
    model, tokenizer = opened("sudoku")
    ids = tokenizer("1 0 0 2", return_tensors="pt")["input_ids"]
    assert torch.equal(model(ids, iterations=4).logits, model.mull(ids, 4).logits)
    for use_cache in (True, False):
        with pytest.raises(ValueError, match="has causal: false, so it keeps no cache and writes no text"):
            model.generate(ids, use_cache=use_cache)
    with pytest.raises(ValueError, match="labels are refused: this model has causal: false"):
        model(ids, labels=ids)
