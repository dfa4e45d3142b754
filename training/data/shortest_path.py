"""Shortest paths: "a b , b c , a d , d e ? a c" asks for the nodes of a shortest way, "a b c".

A planning task in its smallest form: which neighbour comes next is told by what lies behind it, as many edges away as
the way is long. Bachmann and Nagarajan, arXiv 2403.06963, show what next-token prediction makes of it. Every shortest
way is right; a model is trained on one, drawn at random.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from string import ascii_lowercase
from typing import ClassVar

import numpy as np

from mull.training.data.task import END, IGNORE
from mull.training.data.traced import Lengths, TracedTask
from mull.training.data.traces import Derivation, Draws, Step, Traces

MAX_GRAPHS = 10_000  # graphs that are drawn until one has a way of the length asked for


class ShortestPath(TracedTask):
    """The answer is the nodes of a shortest way between two nodes of an undirected graph, then <end>.

    Difficulty is the length of the way in edges. A graph is a random tree, each node joined to one of the three before
    it, and `extra` further edges; edges, their ends and the names of nodes are in random order. T = 3 (nodes - 1 +
    extra) + difficulty + 3.

    Graphs that differ in names alone, or in which end is the start, belong to one split, and a test has one of them: a
    colour refinement from both ends tells them apart.

    Args:
        length: Default difficulty, at most nodes / 2.
        nodes: Nodes of a graph, 4 to 26.
        extra: Edges beyond those of a tree, 0 to nodes.
        styles: How traces are written, by weight, as in {"direct": 1, "search": 2} (traces.py); None writes the answer
            alone, which is what `direct` is. A step in full is the edge "a b", and its result "b".
        traces: What goes astray in them; None means the usual shares.
    """

    name: ClassVar[str] = "shortest_path"
    difficulty_name: ClassVar[str] = "length"
    purpose: ClassVar[str] = (
        "Finds a shortest way between two nodes of a small graph and writes its nodes: for seeing what iterations, "
        "written steps and samples do for planning."
    )
    own_stop_symbols: ClassVar[tuple[str, ...]] = (END,)
    room = "nodes"  # the length cannot be above half of them

    def __init__(
        self,
        length: int = 3,
        nodes: int = 10,
        extra: int = 3,
        styles: dict[str, float] | None = None,
        traces: Traces | None = None,
    ) -> None:
        if not 4 <= nodes <= len(ascii_lowercase):
            raise ValueError(f"nodes is {nodes}: it must be between 4 and {len(ascii_lowercase)}")
        if not 0 <= extra <= min(nodes, (nodes - 1) * (nodes - 2) // 2):
            raise ValueError(f"extra is {extra}: it must be between 0 and {min(nodes, (nodes - 1) * (nodes - 2) // 2)}")
        self.nodes, self.edges = nodes, nodes - 1 + extra
        self.default_difficulty = length
        self.trace(styles, traces)
        self.resolve(length)

    @property
    def own_symbols(self) -> tuple[str, ...]:
        return (*ascii_lowercase[: self.nodes], ",", "?", END)  # a node's token is its number

    def options(self) -> tuple[object, ...]:
        return (self.nodes, self.edges)

    def resolve(self, difficulty: int | None) -> int:
        length = super().resolve(difficulty)
        if length > self.nodes // 2:
            raise ValueError(
                f"length {length} is too large for the shortest_path task with {self.nodes} nodes: use "
                f"{self.nodes // 2} or less, or raise nodes"
            )
        return length

    def own_answer_length(self, difficulty: int) -> int:
        return difficulty + 2

    def draw(self, rng: np.random.Generator, difficulty: int) -> np.ndarray:
        """The ends of the edges, then the nodes of the way: one row."""
        for _ in range(MAX_GRAPHS):
            numbers = rng.random(self.nodes + 2 * self.nodes * self.edges).tolist()
            pairs = {(max(0, i - 3) + int(numbers[i] * min(i, 3)), i) for i in range(1, self.nodes)}
            for i in range(self.nodes, len(numbers) - 1, 2):
                if len(pairs) == self.edges:
                    break
                one, other = int(numbers[i] * self.nodes), int(numbers[i + 1] * self.nodes)
                if one != other:
                    pairs.add((min(one, other), max(one, other)))
            if len(pairs) < self.edges:
                continue
            near = neighbours(pairs, self.nodes)
            starts = rng.permutation(self.nodes).tolist()
            found = next(((s, far) for s in starts if difficulty in (far := distances(near, s))), None)
            if found is None:
                continue
            start, far = found
            goals = [node for node, distance in enumerate(far) if distance == difficulty]
            way = [goals[rng.integers(len(goals))]]
            while way[-1] != start:
                before = [node for node in near[way[-1]] if far[node] == far[way[-1]] - 1]
                way.append(before[rng.integers(len(before))] if len(before) > 1 else before[0])
            names = rng.permutation(self.nodes)
            edges = rng.permuted(rng.permutation(np.array(sorted(pairs))), axis=1)
            return names[np.concatenate([edges.flatten(), way[::-1]])]
        raise ValueError(
            f"no graph of {self.nodes} nodes and {self.edges} edges has a shortest way of {difficulty} edges: use a "
            "smaller length, or more nodes"
        )

    def graph(self, item: np.ndarray) -> tuple[list[list[int]], list[int]]:
        """The neighbours of each node, and the way."""
        numbers = item.tolist()
        ends = numbers[: 2 * self.edges]
        return neighbours(zip(ends[::2], ends[1::2], strict=True), self.nodes), numbers[2 * self.edges :]

    def canonical(self, item: np.ndarray) -> bytes:
        near, way = self.graph(item)
        ends = list(zip(distances(near, way[0]), distances(near, way[-1]), strict=True))
        return min(refined(near, ends), refined(near, [(far, close) for close, far in ends]))

    def lay_out_plainly(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
        comma, ask, end = self.nodes, self.nodes + 1, self.nodes + 2
        edges, way = items[:, : 2 * self.edges].reshape(len(items), self.edges, 2), items[:, 2 * self.edges :]
        words = np.full((len(items), self.edges, 3), comma, dtype=np.int64)
        words[..., :2] = edges
        words[:, -1, 2] = ask
        question = np.concatenate([words.reshape(len(items), -1), way[:, [0, -1]]], axis=1)
        answer = np.concatenate([way, np.full((len(items), 1), end)], axis=1)
        input_ids = np.concatenate([question, answer[:, :-1]], axis=1).astype(np.int64)
        labels = np.full_like(input_ids, IGNORE)
        labels[:, question.shape[1] - 1 :] = answer
        assert input_ids.shape[1] == 3 * self.edges + difficulty + 3
        return input_ids, labels

    def judge(self, question: str, answer: str) -> bool:
        near, start, goal = self.asked(question)
        nodes = {name: node for node, name in enumerate(self.own_symbols[: self.nodes])}
        way = [nodes.get(word, -1) for word in answer.removesuffix(END).split()]
        joined = all(b in near[a] for a, b in pairwise(way) if a >= 0)
        whole = way[:1] == [start] and way[-1:] == [goal] and -1 not in way
        return whole and joined and len(way) - 1 == distances(near, goal)[start]

    def asked(self, question: str) -> tuple[list[list[int]], int, int]:
        """The neighbours of each node, the start and the goal. Raises ValueError for a text that is no question."""
        edges, mark, ends = question.rpartition("?")
        nodes = {name: node for node, name in enumerate(self.own_symbols[: self.nodes])}
        pairs = [[nodes.get(word, -1) for word in each.split()] for each in (*edges.split(","), ends)]
        if not mark or not all(len(pair) == 2 and -1 not in pair and pair[0] != pair[1] for pair in pairs):
            raise self.no_prompt(question)
        near = neighbours(((one, other) for one, other in pairs[:-1]), self.nodes)
        start, goal = pairs[-1]
        if distances(near, start)[goal] < 0:
            raise self.no_prompt(question)
        return near, start, goal

    def no_prompt(self, question: str) -> ValueError:
        return ValueError(
            f"not a shortest_path prompt: {question!r} (expected edges and two different nodes with a way between "
            "them, with blanks between all symbols: a b , b c ? a c)"
        )

    # Traces ---------------------------------------------------------------------------------------------------------

    def lengths(self, difficulty: int) -> Lengths:
        return Lengths(3 * self.edges + 2, (2,) * difficulty, 2, (1,) * difficulty, difficulty + 1)

    def derivations(self, items: np.ndarray, difficulty: int) -> list[Derivation]:  # noqa: ARG002
        return [PathDerivation(*self.graph(item)) for item in items]

    def follower(self, question: str) -> Callable[[list[list[str]]], bool]:
        """Every step must go from where the one before it ended over an edge that brings the goal nearer by one."""
        near, start, goal = self.asked(question)
        left = distances(near, goal)
        nodes = {name: node for node, name in enumerate(self.own_symbols[: self.nodes])}

        def follows(written: list[list[str]]) -> bool:
            here = start
            for step in written:
                there = nodes.get(step[-1], -1) if step else -1
                begun = len(step) == 1 or (len(step) == 2 and nodes.get(step[0]) == here)
                if not begun or there not in near[here] or left[there] != left[here] - 1:
                    return False
                here = there
            return True

        return follows


class PathDerivation(Derivation):
    """The edges of a way; wrong ones lead away, or are none.

    Args:
        near: the neighbours of each node.
        way: the nodes of the way.
    """

    def __init__(self, near: list[list[int]], way: list[int]) -> None:
        self.near, self.way, self.answer = near, way, way
        self.steps = [Step([one, other], [other]) for one, other in pairwise(way)]

    def astray(self, place: int, most: int, draws: Draws) -> list[Step]:
        near, here = self.near, self.way[place]
        left = distances(near, self.way[-1])
        away = [node for node in near[here] if left[node] != left[here] - 1]
        if not away or draws.chance(0.25):
            away = [node for node in range(len(near)) if node != here and node not in near[here]] or away
        there = away[draws.below(len(away))]
        gone = [Step([here, there], [there])]
        while len(gone) < most and near[there] != [here]:
            onward = [node for node in near[there] if node != here]
            here, there = there, onward[draws.below(len(onward))]
            gone.append(Step([here, there], [there]))
        return gone


def neighbours(pairs: Iterable[Sequence[int]], nodes: int) -> list[list[int]]:
    """The neighbours of each node of an undirected graph, ascending."""
    near = [set[int]() for _ in range(nodes)]
    for one, other in pairs:
        near[one].add(other)
        near[other].add(one)
    return [sorted(each) for each in near]


def distances(near: list[list[int]], start: int) -> list[int]:
    """Edges from a node to each; -1 where there is no way."""
    found = [-1] * len(near)
    found[start], front = 0, [start]
    while front:
        reached = []
        for here in front:
            for there in near[here]:
                if found[there] < 0:
                    found[there] = found[here] + 1
                    reached.append(there)
        front = reached
    return found


def refined(near: list[list[int]], colours: list[tuple[int, int]]) -> bytes:
    """A form of a coloured graph that does not know its names: colours by rank, refined by those of neighbours, and the
    edges between them."""
    ranks = ranked(colours)
    for _ in range(2):
        ranks = ranked([(ranks[node], *sorted([ranks[other] for other in there])) for node, there in enumerate(near)])
    joined = [(ranks[one], ranks[other]) for one, there in enumerate(near) for other in there]
    ordered = sorted(pair for pair in joined if pair[0] <= pair[1])  # one of the two directions of each edge
    return bytes(x for rows in (sorted(colours), [sorted(ranks)], ordered) for row in rows for x in row)


def ranked(colours: Sequence[tuple[int, ...]]) -> list[int]:
    """Each colour as its place among the different ones, ascending."""
    places = {colour: place for place, colour in enumerate(sorted(set(colours)))}
    return [places[colour] for colour in colours]
