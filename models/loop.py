"""The loop: think about a state again and again. The function this library is about.

    s_i = think(s_{i-1}),  i = 1 .. R                          (Huginn, arXiv 2502.05171, section 3)

Depth is data: R is an argument. `iterate` is a Python generator: its caller may read an answer at any count, or stop
early.

Three things it does besides counting:

- Gradient window. With `backprop_iterations = k` the first R - k iterations keep no graph, so that memory does not
  grow with R (truncated backpropagation through depth; the injected input keeps its graph through the last k).
- Counts that differ, by row or by position. A state is held while it does not iterate. States *begin* late rather than
  end early: all reach their last iteration together, hence "the last k" are the same k iterations for all.
- Recomputing. With `recompute` an iteration keeps its state alone, and what its gradient needs besides is computed
  again in the backward pass: memory for one iteration and R states, 1.39 to 1.47 times the time
  (docs/results.md), gradients equal to the bit.
"""

import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Iterations = int | Tensor  # one count, or (B,) int64 with one for each row
Think = Callable[[Tensor, int], Tensor]  # (state, index) -> state


def iterate(
    think: Think,
    state: Tensor,
    iterations: int,
    backprop_iterations: int | None = None,
    begins: Tensor | None = None,
    recompute: bool = False,
    disturb: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (count, state) after each iteration, 1 .. R.

    Args:
        think: (state, index) -> state; the index 0 .. R-1 only says where keys and values are kept.
        state: s_0, (B, T, D).
        iterations: R >= 1.
        backprop_iterations: gradients flow through the last k iterations; None means through all.
        begins: index at which a state begins to change, int64 of a shape that broadcasts to the state's: (B, 1, 1) by
            row, (B, T, 1) by position; None means that all begin at 0.
        recompute: keep no more than the state of an iteration for its gradient; `think` must do the same again then.
        disturb: what is done to a state after each iteration, once, also where the iteration is computed again.
    """
    window = iterations if backprop_iterations is None else min(backprop_iterations, iterations)
    for index in range(iterations):
        if index == iterations - window:
            torch.clear_autocast_cache()  # casts made without gradient would be reused, and cut the weights' gradient
        with torch.set_grad_enabled(torch.is_grad_enabled() and index >= iterations - window):
            if recompute and torch.is_grad_enabled():
                advanced = checkpoint(think, state, index, use_reentrant=False, preserve_rng_state=False)
            else:
                advanced = think(state, index)
            if disturb is not None:
                advanced = disturb(advanced)
            state = advanced if begins is None else torch.where(index >= begins, advanced, state)
        yield index + 1, state


def last_state(loop: Iterator[tuple[int, Tensor]]) -> Tensor:
    """Run a loop to its end; the state after its last iteration."""
    return deque(loop, maxlen=1).pop()[1]


def deepest(iterations: Iterations) -> int:
    """The largest of the counts; 1 where there are none, of a batch without rows."""
    if not isinstance(iterations, Tensor):
        return iterations
    return int(iterations.max()) if len(iterations) else 1


def counts_around(mean: int) -> list[int]:
    """1, r/2, r, 2r, 4r: the counts at which a model trained at a mean of r is looked at."""
    return sorted({1, max(1, mean // 2), mean, 2 * mean, 4 * mean})


def check_iterations(iterations: Iterations, batch_size: int) -> Iterations:
    """Return the counts if they can be used; otherwise raise a ValueError that names them."""
    if not isinstance(iterations, Tensor | int) and hasattr(iterations, "__array__"):  # of numpy
        iterations = torch.as_tensor(iterations)
    if not isinstance(iterations, Tensor):
        return check_count("iterations", iterations)
    if iterations.dim() == 0:
        return check_count("iterations", iterations.item())  # type: ignore[arg-type]  # says so if it is none
    if iterations.shape != (batch_size,) or iterations.is_floating_point() or iterations.dtype == torch.bool:
        raise ValueError(
            f"iterations must be an integer or one integer per row, shape ({batch_size},); "
            f"got shape {tuple(iterations.shape)} of {iterations.dtype}"
        )
    if len(iterations):
        check_count("iterations", int(iterations.min()))
    return iterations.to(torch.int64)  # differences of counts would wrap round in a narrower type


def check_counts(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Return the counts of a list, a range, an array or a tensor (N,) as ints; otherwise raise a ValueError that names
    what is no count."""
    given: Any = values.tolist() if hasattr(values, "tolist") else values  # of torch and of numpy
    try:
        each = tuple(given)
    except TypeError:
        raise ValueError(f"{name} must be a list of counts, not {given!r}; write one count as [8]") from None
    return tuple(check_count(name, value) for value in each)


def check_count(name: str, value: int, least: int = 1) -> int:
    """Return the value as an int if it is an integer, of Python's or of numpy's, and not below the limit; otherwise
    raise a ValueError that names both."""
    try:
        if isinstance(value, bool | Tensor):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}") from None
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return value
