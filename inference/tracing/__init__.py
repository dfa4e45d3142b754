"""A window into the thought: what a model would answer after each iteration, how its state moves, and what happens to
the answer when the state is changed on the way.

    trace = mull.trace(model, "1 0 1 1", iterations=32)            # plain tensors, by iteration and position
    patch = Patch.of(other, positions=range(9), iteration=12)      # the states of another run, put in place of its own
    patched = mull.trace(model, "1 0 1 1", iterations=32, patch=patch)
    difference(trace, patched)                                   # what the change did to the answers
    write_page("trace.html", model, {"clean": trace, "patched": patched})
"""

from mull.inference.tracing.answers import Answers
from mull.inference.tracing.differences import Difference, difference
from mull.inference.tracing.interventions import Intervention, Noise, Patch
from mull.inference.tracing.pages import write_page
from mull.inference.tracing.trace import Trace

__all__ = ["Answers", "Difference", "Intervention", "Noise", "Patch", "Trace", "difference", "write_page"]
