"""What a model is trained on: synthetic tasks with a difficulty knob, and packed text.

`TaskData` and `TextData` wrap them for Lightning's Trainer. They are imported on first use, so that a task can be used
without the trainer.
"""

from typing import TYPE_CHECKING, Any

from mull.training.data.addition import Addition
from mull.training.data.countdown import Countdown
from mull.training.data.curriculum import ReachedAccuracy
from mull.training.data.maze import Maze
from mull.training.data.mod_chain import ModChain
from mull.training.data.p_hop import PHop
from mull.training.data.parity import Parity
from mull.training.data.shortest_path import ShortestPath
from mull.training.data.state_tracking import StateTracking
from mull.training.data.sudoku import Sudoku
from mull.training.data.task import IGNORE, Example, Split, Task
from mull.training.data.text import Corpus
from mull.training.data.traced import Problem, TracedTask
from mull.training.data.traces import Traces

if TYPE_CHECKING:
    from mull.training.data.module import TaskData, TextData
    from mull.training.data.own_texts import OwnTextData
    from mull.training.data.reasoning_gym import ReasoningGym
    from mull.training.data.rollouts import RolloutData

__all__ = [
    "IGNORE",
    "Addition",
    "Corpus",
    "Countdown",
    "Example",
    "Maze",
    "ModChain",
    "OwnTextData",
    "PHop",
    "Parity",
    "Problem",
    "ReachedAccuracy",
    "ReasoningGym",
    "RolloutData",
    "ShortestPath",
    "Split",
    "StateTracking",
    "Sudoku",
    "Task",
    "TaskData",
    "TextData",
    "TracedTask",
    "Traces",
]


def __getattr__(name: str) -> Any:
    """What needs Lightning or reasoning_gym, imported when it is first used, so that tasks alone need neither."""
    if name in ("TaskData", "TextData"):
        from mull.training.data import module

        return getattr(module, name)
    if name == "ReasoningGym":
        from mull.training.data.reasoning_gym import ReasoningGym

        return ReasoningGym
    if name == "OwnTextData":
        from mull.training.data.own_texts import OwnTextData

        return OwnTextData
    if name == "RolloutData":
        from mull.training.data.rollouts import RolloutData

        return RolloutData
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
