"""No tensor is left on the CPU: every public call of every family, with model and tokens on a device of its own.

There is no second device on most machines, so one is made up (tests/elsewhere.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

from mull.models import IteratedModel, LanguageModel, ModelConfig, Reading
from mull.models.cache import Policy
from mull.models.families import FAMILIES

Build = Callable[..., LanguageModel]
Tokens = Callable[..., Tensor]
Fields = dict[str, Any]

SHAPE = {"vocab_size": 7, "d_model": 8, "n_heads": 2, "d_ff": 8, "max_length": 16, "n_layers": 2, "mean_iterations": 3}
Said = Iterator[tuple[str, Tensor | None]]
To = Callable[[Tensor], Tensor]  # brings a tensor to the device of the model that is asked


def said(name: str, out: Reading) -> Said:
    """Every tensor of an answer, by name."""
    for field, value in vars(out).items():
        if isinstance(value, dict):
            for count, reading in value.items():
                yield from said(f"{name}, read at {count}", reading)
        elif isinstance(value, tuple):
            yield from ((f"{name}: {field} {number}", part) for number, part in enumerate(value))
        else:
            yield f"{name}: {field}", value


def arguments(model: LanguageModel, to: To) -> Iterator[Fields]:
    """Every argument of the family's forward, each by itself, at counts below and above the trained ones; in eval only
    what makes a difference there."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    yield {}
    yield {"attention_mask": to(mask)}
    if not model.training:
        yield from ({"capacity": capacity} for capacity in (0.0, 0.5, 1.0) if model.config.routed_layers)
        return
    if model.config.default_iterations is not None:
        counts = torch.tensor([1, 3])
        yield {"iterations": 2}
        yield {"iterations": to(torch.tensor(3))}
        yield {"iterations": to(counts), "attention_mask": to(mask)}
        yield {"iterations": counts}  # brought over by the model itself
        yield {"iterations": 5, "read_at": [1, 4, 5]}
    if isinstance(model, IteratedModel):
        state = torch.randn(2, 6, model.config.d_model, generator=torch.Generator().manual_seed(2)).double()
        yield {"iterations": 2, "state": to(state)}
        yield {"iterations": 2, "generator": torch.Generator().manual_seed(3)}
        yield {"iterations": 2, "generator": torch.Generator(model.device).manual_seed(3)}
        yield {"iterations": 4, "backprop_iterations": 2}
    if model.config.routed_layers:
        passes = (model.config.default_iterations or 1) - 1
        yield from ({"capacity": capacity} for capacity in (0.0, 0.5, 1.0, (0.9, 0.0, 0.4)[:passes]))
        yield from ({"selection": selection, "capacity": 0.5} for selection in ("top_k", "threshold"))


def uncached(model: LanguageModel, ids: Tensor, to: To) -> Said:
    for given in arguments(model, to):
        name = ", ".join(given)
        out = model(ids, **given)
        yield from said(name, out)
        yield f"{name}: cost", torch.tensor(model.executed_flops_per_token(out))
        if model.training:
            (out.logits.square().sum() + (0 if out.auxiliary_loss is None else out.auxiliary_loss)).backward()
            yield from ((f"{name}: gradient of {key}", p.grad) for key, p in model.named_parameters())
            model.zero_grad(set_to_none=True)
    for count, reading in model.sweep(ids, [None] if model.config.default_iterations is None else [1, 3]):
        yield from said(f"sweep at {count}", reading)


def cached(model: LanguageModel, ids: Tensor, to: To, number: int) -> Said:
    """Prefill, a chunk and single tokens, of rows with padding and without and of one row, under every policy; where
    layers reach back for keys alone, each configuration meets two of the three policies."""
    mask, counts = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]), torch.tensor([1, 3])
    policies = get_args(Policy)
    if model.config.reach == 1:
        policies = [policies[(number + step) % len(policies)] for step in (0, 1)]
    for policy in policies:
        for rows, given in ((2, to(mask)), (1, None)):
            cache, some = model.new_cache(rows, 16, policy, ring=2 if policy == "shared" else 1), ids[:rows]
            for start, end in ((0, 4), (4, 6), (2, 3)):
                now = given if start == 0 else None
                yield from said(
                    f"{policy}: {start} to {end}", model(some[:, start:end], attention_mask=now, cache=cache)
                )
            cache.rollback([length - 1 for length in cache.lengths])
            fork = cache.fork([rows - 1, 0])
            yield from said(f"{policy}: fork", model(ids[:, 1:2], cache=fork))
            yield f"{policy}: kept", cache.read((0, 0), 3)[0]
    cache = model.new_cache(2, 16)
    for part in ids.split((3, 2, 1), dim=1):
        yield from said("even rows", model(part, cache=cache))
    if model.config.default_iterations is not None:
        cache = model.new_cache(2, 16)
        for part in ids.split((4, 1, 1), dim=1):
            yield from said("counts by row, cached", model(part, counts, cache=cache))
        for part in ids.split((3, 1, 2), dim=1):
            yield from said("a row with a count, cached", model(part[:1], counts[1:], cache=cache.fork([1])))
    narrow = model.new_cache(2, 16, dtype=torch.bfloat16)
    yield from said("narrower", model(ids, cache=narrow))


def by_verbs(model: IteratedModel, ids: Tensor) -> Said:
    """As decoders drive a model: some tokens go on alone."""
    cache = model.new_cache(2, 16, "deepest")
    context = model.context(ids, None, cache, 2)
    injected = model.enter(ids, context)
    prepared, state = model.prepare(injected), model.start(injected, torch.Generator().manual_seed(1))
    state = model.think(state, prepared, context, 0)
    rows, columns = context.cells()
    cache.hold(rows[1:], columns[1:], 1)
    some = context.narrow(torch.tensor([0, 3, 8], device=ids.device))
    state = some.scatter(state, model.think(some.gather(state), some.gather(prepared), some, 1))
    yield from said("verbs", model.read(state, context))
    context.commit(2)
    if model.can_halt:
        yield "halt", model.halt(state)


def covering() -> Iterator[ModelConfig]:
    """As few small configurations as have every value of every option of every family."""
    for model_class in FAMILIES.values():
        family = model_class.config_class
        hints = {f.name: get_type_hints(family)[f.name] for f in fields(family)}
        options: dict[str, tuple[Any, ...]] = {name: tuple(words) for name, words in family.choices.items()}
        options |= {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
        own = ("causal", "board")  # come in configurations of their own
        options |= {name: (False, True) for name, hint in hints.items() if hint is bool and name not in own}
        shape = {name: value for name, value in SHAPE.items() if name in hints}
        for i in range(max(map(len, options.values()))):
            yield family(**shape, **{name: values[i % len(values)] for name, values in options.items()})
        if hints["causal"] is bool:  # which has no cache
            yield family(**shape, causal=False, window=2)
            yield family(**shape, causal=False, convolution="mlp")
            yield family(**shape, causal=False, board=True, window=2)


COVERING = list(enumerate(covering()))
CALIBRATED = [number for number, config in COVERING if config.routed_layers and config.causal][::3]
assert CALIBRATED


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("number", "config"), COVERING, ids=lambda given: getattr(given, "model_type", None))
def test_every_call_runs_elsewhere_and_says_the_same(
    number: int, config: ModelConfig, build: Build, tokens: Tokens, training: bool, elsewhere: ModuleType
) -> None:
    """In training gradients are made too, and in eval caches are filled."""

    def answers(model: LanguageModel, to: To) -> list[tuple[str, Tensor | None]]:
        ids = to(tokens(config, 2, 6))
        with torch.set_grad_enabled(training):
            found = list(uncached(model, ids, to))
        if not training and config.causal:
            if number in CALIBRATED:  # many runs of the layers, which say nothing new of a pass
                model.calibrate(ids)
            with torch.no_grad():
                found += [
                    *cached(model, ids, to, number),
                    *(by_verbs(model, ids) if isinstance(model, IteratedModel) else ()),
                ]
        return found + list(model.named_buffers())

    expected = answers(build(config).train(training), lambda x: x)
    with elsewhere.second_device():
        found = answers(elsewhere.moved(build(config).train(training)), elsewhere.Elsewhere)
    for (name, here), (other_name, there) in zip(expected, found, strict=True):
        assert name == other_name
        if here is None or name.endswith(": cost"):
            assert there is here or torch.equal(there, here)
        else:
            assert isinstance(there, elsewhere.Elsewhere), f"{name} is left on the CPU"
            tolerance = 0.05 if name.startswith("narrower") else 1e-9
            torch.testing.assert_close(
                there.held, here, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
