"""A second device for tests, on machines that have none.

Its tensors hold their numbers on the CPU, say that they are elsewhere (`meta`, which torch lets anybody claim), and
refuse what a GPU refuses: to be computed with tensors that are on the CPU, or with a generator of the CPU, and to be
numpy's. Unlike torch's fake tensors and its own meta device they have numbers, so that everything runs: routing, which
asks which tokens are selected, and sampling too. Answers are those of the CPU to rounding: where a gradient is asked
for, torch writes attention out on other devices, so that sums run in another order.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mull.models import LanguageModel

Fields = dict[str, Any]

ELSEWHERE, CPU = torch.device("meta"), torch.device("cpu")
# What torch makes of a dozen operations: one here, where nobody asks for its gradient.
WHOLE = (F.rms_norm, F.linear, F.scaled_dot_product_attention)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)  # from one device to the other


class Elsewhere(Tensor):
    """A tensor on the second device; `held` has its numbers."""

    held: Tensor
    is_meta = False  # torch fills no tensor that says so

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

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held!r})"

    def __format__(self, spec: str) -> str:
        return format(self.held, spec)

    def numpy(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        raise TypeError("can't convert a tensor of another device to numpy: use Tensor.cpu() first")

    __array__ = numpy

    def __deepcopy__(self, memo: Fields) -> "Elsewhere":
        new = Elsewhere(self.held.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter):
            new = nn.Parameter(new, self.requires_grad)  # type: ignore[assignment]
        memo[id(self)] = new
        return new

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


class Generator(torch.Generator):
    """A generator, on the second device if it is told so; it draws the same numbers there."""

    def __init__(self, device: Any = CPU) -> None:
        self.stands = torch.device(device)

    @staticmethod
    def __new__(cls, device: Any = CPU) -> "Generator":  # torch knows none of the second device
        return super().__new__(cls)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.stands


class Numbers(TorchFunctionMode):
    """What operations do not see any more: torch.tensor makes tensors of the second device itself and forgets their
    numbers, so they are made here, then brought; and whose the generator is that draws."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in WHOLE and not torch.is_grad_enabled():
            with torch._C._DisableTorchDispatch():
                return computed(function, args, kwargs)
        if function in (torch.tensor, torch.as_tensor) and is_elsewhere(kwargs.get("device")):
            if isinstance(args[0], Tensor):
                return args[0].to(ELSEWHERE, kwargs.get("dtype"))
            return Elsewhere(function(*args, **{**kwargs, "device": CPU}))
        generator, device = kwargs.get("generator"), kwargs.get("device")
        if generator is not None:
            drawn = [x.device for x in args if isinstance(x, Tensor)] or [torch.device(device or CPU)]
            if drawn[0] != generator.device:
                raise RuntimeError(f"{function}: a generator of {generator.device} draws on {drawn[0]}")
        return function(*args, **kwargs)


def is_elsewhere(device: Any) -> bool:
    return device is not None and torch.device(device) == ELSEWHERE


class Operations(TorchDispatchMode):
    """All operations, those that make tensors out of nothing too."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled under it, and to guard against that costs a third of a call

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


class NoGradient(torch.no_grad):
    """In place of torch.inference_mode, whose tensors have no counter of versions, which wrapped ones need."""

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self.mode = mode

    def __enter__(self) -> None:
        self.prev = torch.is_grad_enabled()
        torch.set_grad_enabled(self.prev and not self.mode)


@contextmanager
def second_device() -> Iterator[None]:
    """There is a second device inside."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.Generator", Generator))
        for name in ("__enter__", "__exit__"):  # the class itself stands in decorators already
            stack.enter_context(mock.patch.object(torch.inference_mode, name, getattr(NoGradient, name)))
        stack.enter_context(Numbers())
        stack.enter_context(Operations())
        yield


def computed(function: Any, args: Any, kwargs: Fields) -> Any:
    """What an operation gives, on the device of its tensors, or on the one that it is told."""
    here: list[Tensor] = []
    away: dict[int, Elsewhere] = {}
    given = numbers(args, here, away)
    named = {name: numbers(value, here, away) for name, value in kwargs.items()} if kwargs else {}
    if away and here and function not in COPIES:
        tags = getattr(function, "tags", ())
        left = [tuple(x.shape) for x in here if x.dim() or torch.Tag.pointwise not in tags]  # not x * 2
        if left:
            raise RuntimeError(f"{function}: {left} on the CPU beside {len(away)} elsewhere")
    there = isinstance(args[0], Elsewhere) if function is COPIES[1] else bool(away)
    if "device" in named and named["device"] is not None:
        there, named["device"] = named["device"] == ELSEWHERE, CPU
    result = function(*given, **named)
    return placed(result, away) if there else result


def numbers(x: Any, here: list[Tensor], away: dict[int, Elsewhere]) -> Any:
    """What an argument holds; its tensors are put down by where they are."""
    kind = type(x)
    if kind is Elsewhere:
        away[id(x.held)] = x
        return x.held
    if kind is list or kind is tuple:
        return kind([numbers(part, here, away) for part in x])
    if isinstance(x, Tensor):
        here.append(x)
    return x


def placed(x: Any, away: dict[int, Elsewhere]) -> Any:
    """A result on the second device; what is written in place is the same tensor again."""
    if isinstance(x, Tensor):
        known = away.get(id(x))
        if known is not None:
            return known
        return Elsewhere(x.resolve_conj().resolve_neg() if x.is_conj() or x.is_neg() else x)
    return type(x)([placed(part, away) for part in x]) if isinstance(x, list | tuple) else x


def moved(model: LanguageModel) -> LanguageModel:
    """A copy of the model with everything that it holds on the second device."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(Elsewhere(parameter.detach().clone())))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, Elsewhere(buffer.clone()))
    return model
