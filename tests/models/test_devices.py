"""No tensor is left on the CPU: every public call of every family, with model and tokens on a device of its own.

There is no second device on most machines, so one is made up: its tensors hold their numbers on the CPU, say that they
are elsewhere (`meta`, which torch lets anybody claim), and refuse to be computed with tensors that are on the CPU, as a
GPU does. Unlike torch's fake tensors and its own meta device they have numbers, so that everything runs: routing, which
asks which tokens are selected, too. Answers must be those of the CPU to rounding: on other devices torch writes
attention out, so that sums run in another order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mull.models import IteratedModel, LanguageModel, ModelConfig, Reading
from mull.models.cache import Policy
from mull.models.families import FAMILIES

Build = Callable[..., LanguageModel]
Tokens = Callable[..., Tensor]
Fields = dict[str, Any]

SHAPE = {"vocab_size": 7, "d_model": 8, "n_heads": 2, "d_ff": 8, "max_length": 16, "n_layers": 2, "mean_iterations": 3}
ELSEWHERE, CPU = torch.device("meta"), torch.device("cpu")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)  # from one device to the other


class Elsewhere(Tensor):
    """A tensor on the second device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        return Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=ELSEWHERE,
        )  # fmt: skip

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


class Numbers(TorchFunctionMode):
    """torch.tensor makes tensors of the second device itself, and forgets their numbers: made here, then brought."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") == ELSEWHERE:
            return Elsewhere(function(*args, **{**kwargs, "device": CPU}))
        return function(*args, **kwargs)


class Operations(TorchDispatchMode):
    """All operations, those that make tensors out of nothing too."""

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[None]:
    """There is a second device inside."""
    with Numbers(), Operations():
        yield


def computed(function: Any, args: Any, kwargs: Fields) -> Any:
    """What an operation gives, on the device of its tensors, or on the one that it is told."""
    here, away = list[Tensor](), dict[int, Elsewhere]()

    def numbers(x: Any) -> Any:
        if isinstance(x, Elsewhere):
            away[id(x.held)] = x
            return x.held
        if isinstance(x, Tensor):
            here.append(x)
        return type(x)(map(numbers, x)) if isinstance(x, list | tuple) else x

    given = numbers(args)
    named = {name: numbers(value) for name, value in kwargs.items()}
    if away and here and function not in COPIES:
        left = [tuple(x.shape) for x in here if x.dim() or torch.Tag.pointwise not in function.tags]  # not x * 2
        if left:
            raise RuntimeError(f"{function}: {left} on the CPU beside {len(away)} elsewhere")
    there = isinstance(args[0], Elsewhere) if function is COPIES[1] else bool(away)
    if "device" in named and named["device"] is not None:
        there, named["device"] = named["device"] == ELSEWHERE, CPU

    def placed(x: Any) -> Any:
        if isinstance(x, Tensor):
            known = away.get(id(x))  # what is written in place is the same tensor again
            return Elsewhere(x.resolve_conj().resolve_neg()) if known is None else known
        return type(x)(map(placed, x)) if isinstance(x, list | tuple) else x

    result = function(*given, **named)
    return placed(result) if there else result


def moved(model: LanguageModel) -> LanguageModel:
    """The model with everything that it holds on the second device."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(Elsewhere(parameter.detach().clone())))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, Elsewhere(buffer.clone()))
    return model


Said = Iterator[tuple[str, Tensor | None]]
To = Callable[[Tensor], Tensor]  # brings a tensor to the device of the model that is asked


def said(name: str, out: Reading) -> Said:
    """Every tensor of an answer, by name."""
    for field, value in vars(out).items():
        if isinstance(value, dict):
            for count, reading in value.items():
                yield from said(f"{name}, read at {count}", reading)
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


def cached(model: LanguageModel, ids: Tensor, to: To) -> Said:
    """Prefill, a chunk and single tokens, of rows with padding and without and of one row, under every policy."""
    mask, counts = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]), torch.tensor([1, 3])
    for policy in get_args(Policy):
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
        options |= {name: (False, True) for name, hint in hints.items() if hint is bool}
        shape = {name: value for name, value in SHAPE.items() if name in hints}
        for i in range(max(map(len, options.values()))):
            yield family(**shape, **{name: values[i % len(values)] for name, values in options.items()})


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("config", list(covering()), ids=lambda config: config.model_type)
def test_every_call_runs_elsewhere_and_says_the_same(
    config: ModelConfig, build: Build, tokens: Tokens, training: bool
) -> None:
    """In training gradients are made too, and in eval caches are filled."""

    def answers(model: LanguageModel, to: To) -> list[tuple[str, Tensor | None]]:
        ids = to(tokens(config, 2, 6))
        found = list(uncached(model, ids, to))
        if not training:
            model.calibrate(ids)
            with torch.no_grad():
                found += [*cached(model, ids, to), *(by_verbs(model, ids) if isinstance(model, IteratedModel) else ())]
        return found + list(model.named_buffers())

    expected = answers(build(config).train(training), lambda x: x)
    with second_device():
        found = answers(moved(build(config).train(training)), Elsewhere)
    for (name, here), (other_name, there) in zip(expected, found, strict=True):
        assert name == other_name
        if here is None or name.endswith(": cost"):
            assert there is here or torch.equal(there, here)
        else:
            assert isinstance(there, Elsewhere), f"{name} is left on the CPU"
            tolerance = 0.05 if name.startswith("narrower") else 1e-9
            torch.testing.assert_close(
                there.held, here, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_the_second_device_refuses_what_a_gpu_refuses() -> None:
    """Guards the guard: a tensor left on the CPU is found, a number is none, and a copy is allowed."""
    with second_device():
        there = torch.randn(3, 4, device=ELSEWHERE)
        assert isinstance(there @ there.T, Elsewhere) and isinstance(there * torch.tensor(2.0), Elsewhere)
        for wrong in (
            lambda: there + torch.ones(4),
            lambda: there @ torch.ones(4, 4),
            lambda: torch.cat([there, torch.ones(1, 4)]),
            lambda: torch.stack([there[0, 0], torch.tensor(1.0)]),
            lambda: there[torch.tensor([0, 1])],
            lambda: torch.where(torch.ones(3, 1, dtype=torch.bool), there, there),
        ):
            with pytest.raises(RuntimeError, match="on the CPU beside"):
                wrong()
        assert torch.equal(there.to(CPU), there.held) and not isinstance(there.to(CPU), Elsewhere)
        assert isinstance(there.copy_(torch.ones(4)), Elsewhere) and there.sum().item() == 12
        assert torch.tensor([1, 2], device=ELSEWHERE).tolist() == [1, 2]
        assert (there > 0).nonzero().shape == (12, 2) and there[0].tolist() == [1, 1, 1, 1]
