"""Chains of modular arithmetic whose statements are shuffled: "c = a - 5 ; a = 9 ; b = c * 4 ; d = a + 1 ; ? b".

What is asked for is a number and the operations on it that lead from variable to variable; the statements stand in
random order (with `ordered`, each behind the one that it rests on), and some of them lead elsewhere. To answer, the
variable that is asked for has to be followed back to the number and the operations have to be done in turn, each on the
result of the one before: as many sequential steps as there are operations, or log2 of that in rounds of pairing, since
the composition of two operations is one of the same kind. It is a plain relative of i-GSM (Ye et al., arXiv
2407.20311), of which Saunshi et al., arXiv 2502.17416, use a symbolic form for looped models.

The question stands at the end: a causal model reads all statements before it, and answers at the last symbol. With
`ordered` it can work out each variable as it reads, so that the answer may be known before it is asked for.
"""

import math
from collections.abc import Callable
from string import ascii_lowercase
from typing import ClassVar

import numpy as np

from mull.training.data.task import IGNORE, Split
from mull.training.data.traced import Lengths, TracedTask
from mull.training.data.traces import Derivation, Draws, Step, Traces

OPERATORS = "+-*"
PLACE, TARGET, SOURCE, OPERATOR, CONSTANT = range(5)  # columns of an item; its rows are the statements
MAX_MODULUS = 1000
LEAST_STEPS = 2  # operations of the shortest chain whose steps are shown


class ModChain(TracedTask):
    """One number modulo `modulus` is the answer; a guess is right 1/modulus of the time.

    Difficulty is the number of operations that lead from a number to the answer: sums, differences, and products with a
    factor that has an inverse, so that none of them makes what stands before it needless. `distractors` further
    statements lead elsewhere: the first gives another variable a number, the others do an operation on any variable
    that there is. So T = 6 (operations + distractors) + 6, and two less where there are distractors.

    The number and the operations behind an answer decide the split of an item: a chain that is asked for in a test was
    asked for in no training item, under whatever names, in whatever order and among whatever distractors. Operations
    are told apart as they are written, so that - 2 and + 3 modulo 5 are two: a short chain of a small modulus mostly
    has a twin in training that says the same in other words (modulo 5 nine of ten of two operations, one of fifty of
    four).

    Args:
        operations: Default difficulty.
        modulus: What all arithmetic is modulo, 2 to 1000; every number is one symbol.
        distractors: Statements that the answer does not need.
        variables: Number of variable names, up to 702, of which an item takes some at random. It fixes the vocabulary:
            an item needs operations + 1 + distractors of them.
        styles: How traces are written, by weight, as in {"direct": 1, "chain": 2} (traces.py); None writes the answer
            alone. A step in full is "c = 9 - 5 = 4", and its result "4". A chain needs 2 operations or more; the number
            and the first two decide the split.
        traces: What goes astray in them; None means the usual shares.
        every: Whether training also scores the statements that lead to the answer, each where it ends, with the value
            of its variable: a teacher at every step. By itself that is for models whose tokens see all statements
            (`causal: false`). With `styles` or `ordered`, which causal models can learn, a statement is scored if all
            of the chain before it stands before it; where ordered, that is always so. A test scores the answer alone.
            Chains have 2 operations or more then; the number and the first two decide the split, so that no value that
            a test asks for was scored in training.
        ordered: Whether each statement stands behind the one that it rests on, so that a causal model can work it out
            where it ends; else their order is any.
    """

    name: ClassVar[str] = "mod_chain"
    difficulty_name: ClassVar[str] = "operations"
    purpose: ClassVar[str] = (
        "Says what a variable is, out of assignments that lead to it by modular arithmetic: for seeing how many "
        "iterations a chain of operations takes."
    )

    def __init__(
        self,
        operations: int = 8,
        modulus: int = 23,
        distractors: int = 4,
        variables: int = 52,
        styles: dict[str, float] | None = None,
        traces: Traces | None = None,
        every: bool = False,
        ordered: bool = False,
    ) -> None:
        if not 2 <= modulus <= MAX_MODULUS:
            raise ValueError(f"modulus is {modulus}: it must be between 2 and {MAX_MODULUS}")
        if distractors < 0:
            raise ValueError(f"distractors is {distractors}: it must be 0 or more")
        names = [*ascii_lowercase, *(first + second for first in ascii_lowercase for second in ascii_lowercase)]
        if not 2 <= variables <= len(names):
            raise ValueError(f"variables is {variables}: it must be between 2 and {len(names)}")
        self.modulus, self.distractors, self.names = modulus, distractors, tuple(names[:variables])
        self.factors = np.array([k for k in range(1, modulus) if math.gcd(k, modulus) == 1])
        self.default_difficulty, self.every, self.ordered = operations, every, ordered
        self.sees_all = every and styles is None and not ordered
        self.trace(styles, traces)
        if self.shows_steps:
            self.room = "modulus"  # the first operations decide the split, and further ones make no more beginnings
        self.resolve(operations)

    @property
    def equals(self) -> int:
        """The token of "="."""
        return self.modulus + len(self.names) + len(OPERATORS)

    @property
    def own_symbols(self) -> tuple[str, ...]:
        return (*self.own_stop_symbols, *self.names, *OPERATORS, "=", ";", "?")

    @property
    def own_stop_symbols(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.modulus)))  # the answer to a prompt is one number

    @property
    def shows_steps(self) -> bool:
        """Whether training tells the results on the way."""
        return self.every or self.mixture is not None

    def options(self) -> tuple[object, ...]:
        return (self.modulus, self.distractors, len(self.names), *(("ordered",) if self.ordered else ()))

    def resolve(self, difficulty: int | None) -> int:
        operations = super().resolve(difficulty)
        needed = operations + 1 + self.distractors
        if needed > len(self.names):
            raise ValueError(
                f"{operations} operations and {self.distractors} distractors need {needed} variables, "
                f"not {len(self.names)}: raise variables"
            )
        if self.shows_steps and operations < LEAST_STEPS:
            raise ValueError(
                f"a chain of {operations} operation has no steps on the way: use {LEAST_STEPS} operations or more"
            )
        return operations

    def draw(self, rng: np.random.Generator, difficulty: int) -> np.ndarray:
        """Rows (place in the chain, or -1; target; source, or -1 for a number; operator; constant), as they stand."""
        chain, count = difficulty + 1, difficulty + 1 + self.distractors
        item = np.empty((count, 5), dtype=np.int64)
        names = rng.permutation(len(self.names))[:count]
        item[:, PLACE] = np.where(np.arange(count) < chain, np.arange(count), -1)
        item[:, TARGET] = names
        item[:chain, SOURCE] = [-1, *names[: chain - 1]]
        if self.distractors:
            item[chain, SOURCE] = -1
            item[chain + 1 :, SOURCE] = [names[rng.integers(before)] for before in range(chain + 1, count)]
        item[:, OPERATOR] = np.where(item[:, SOURCE] < 0, 0, rng.integers(len(OPERATORS), size=count))
        factors = self.factors[rng.integers(len(self.factors), size=count)]
        terms = rng.integers(self.modulus, size=count)
        item[:, CONSTANT] = np.where(item[:, OPERATOR] == OPERATORS.index("*"), factors, terms)
        return item[self.in_order(rng, item) if self.ordered else rng.permutation(count)]

    def in_order(self, rng: np.random.Generator, item: np.ndarray) -> list[int]:
        """A random order in which each of an item's statements stands behind the one that it rests on."""
        order, left = list[int](), list(range(len(item)))
        known = {-1}
        while left:
            ready = [statement for statement in left if item[statement, SOURCE] in known]
            order.append(ready[rng.integers(len(ready))])
            left.remove(order[-1])
            known.add(item[order[-1], TARGET])
        return order

    def canonical(self, item: np.ndarray) -> bytes:
        chain = item[item[:, PLACE] >= 0]
        ordered = chain[chain[:, PLACE].argsort()]
        return ordered[:, [OPERATOR, CONSTANT]].astype("<i2").tobytes()

    def own_answer_length(self, difficulty: int) -> int:  # noqa: ARG002
        return 1

    def lay_out_plainly(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
        equals, stop, ask = (self.symbols.index(symbol) for symbol in "=;?")
        first_name, first_operator = self.modulus, self.modulus + len(self.names)
        sources, constants = items[..., SOURCE], items[..., CONSTANT]
        number = sources < 0  # "a = 7 ;" is two symbols shorter than "b = a + 7 ;"
        words = np.full((*items.shape[:2], 6), -1, dtype=np.int64)
        words[..., 0], words[..., 1] = first_name + items[..., TARGET], equals
        words[..., 2] = np.where(number, constants, first_name + sources)
        words[..., 3] = np.where(number, stop, first_operator + items[..., OPERATOR])
        words[..., 4] = np.where(number, -1, constants)
        words[..., 5] = np.where(number, -1, stop)
        statements = words.reshape(len(items), -1)
        statements = statements[statements >= 0].reshape(len(items), -1)  # as many symbols in every row
        asked = first_name + items[..., TARGET][items[..., PLACE] == difficulty]
        question = np.stack([np.full_like(asked, ask), asked], axis=1)
        input_ids = np.concatenate([statements, question], axis=1)
        labels = np.full_like(input_ids, IGNORE)
        values = self.values(items, difficulty)
        labels[:, -1] = values[:, -1]
        if self.every:
            rows = np.arange(len(items))
            ends = np.where(number, 4, 6).cumsum(axis=1) - 1  # the ";" of each statement
            latest = np.zeros(len(items), dtype=np.int64)
            for place in range(difficulty + 1):
                stands = (items[..., PLACE] == place).argmax(axis=1)
                latest = np.maximum(latest, stands)
                told = self.sees_all | (stands == latest)  # what it rests on stands before it
                labels[rows[told], ends[rows, stands][told]] = values[told, place]
        return input_ids, labels

    def values(self, items: np.ndarray, difficulty: int) -> np.ndarray:
        """What the statements of the chains of items (B, ...) make, in the chain's order: (B, difficulty + 1)."""
        rows = np.arange(len(items))
        values = np.zeros((len(items), difficulty + 1), dtype=np.int64)
        for place in range(difficulty + 1):
            statement = items[rows, (items[..., PLACE] == place).argmax(axis=1)]
            operator, constant = statement[:, OPERATOR], statement[:, CONSTANT]
            before = values[:, place - 1]  # nothing, at the first place
            results = [before + constant, before - constant, before * constant]
            values[:, place] = np.choose(operator, results) % self.modulus
        return values

    def judge(self, question: str, answer: str) -> bool:
        return answer.split() == [self.told(question)[-1][-1]]

    def told(self, question: str) -> list[list[str]]:
        """The steps of a question in full, each a list of words; the last word of each is its result.

        Raises ValueError for a text that is no question.
        """
        statements, mark, asked = question.rpartition("?")
        given: dict[str, list[str]] = {}
        for words in map(str.split, statements.split(";")[:-1]):
            if len(words) not in (3, 5) or words[1] != "=" or words[0] in given:
                raise self.no_prompt(question)
            given[words[0]] = words[2:]
        known = set(self.names) >= given.keys() and asked.strip() in given
        if not mark or statements.split(";")[-1].strip() or not known:
            raise self.no_prompt(question)
        chain, name = list[tuple[str, list[str]]](), asked.strip()
        while len(chain) <= len(given):
            first, *operation = given[name]
            chain.append((name, operation))
            if not operation:
                break
            if first not in given:
                raise self.no_prompt(question)
            name = first
        else:
            raise self.no_prompt(question)  # a circle
        numbers = [first, *(operation[1] for _, operation in chain[:-1])]
        operators = {operation[0] for _, operation in chain[:-1]}
        if not set(self.own_stop_symbols).issuperset(numbers) or not set(OPERATORS) >= operators:
            raise self.no_prompt(question)
        steps = [[name, "=", first]]
        for name, (operator, constant) in reversed(chain[:-1]):
            before = steps[-1][-1]
            result = self.result(int(before), OPERATORS.index(operator), int(constant))
            steps.append([name, "=", before, operator, constant, "=", str(result)])
        return steps

    def result(self, value: int, operator: int, constant: int) -> int:
        """What an operation makes of a value."""
        return (value + constant, value - constant, value * constant)[operator] % self.modulus

    # Traces ---------------------------------------------------------------------------------------------------------

    def lengths(self, difficulty: int) -> Lengths:
        further = self.distractors
        question = 6 * (difficulty + further) + (4 if further else 6)
        return Lengths(question, (3, *(7,) * difficulty), 7, (1,) * (difficulty + 1), 1)

    def derivations(self, items: np.ndarray, difficulty: int) -> list[Derivation]:  # noqa: ARG002
        order = items[..., PLACE].argsort(axis=1, kind="stable")  # off the chain is -1, and comes first
        ordered = np.take_along_axis(items, order[..., None], axis=1)
        aside = ordered[:, : self.distractors].tolist()
        return [
            ChainDerivation(self, chain, others)
            for chain, others in zip(ordered[:, self.distractors :].tolist(), aside, strict=True)
        ]

    def follower(self, question: str) -> Callable[[list[list[str]]], bool]:
        """A step in full must be true, and a result alone that of its place. Which step is next is not asked: what is
        true of another variable leads nowhere, and forbids nothing."""
        steps = self.told(question)
        results = [step[-1] for step in steps]
        true = self.all_told(question)

        def follows(written: list[list[str]]) -> bool:
            if all(len(step) == 1 for step in written):
                return [step[0] for step in written] == results[: len(written)]
            return all(step == true.get(step[0]) for step in written if step) and all(written)

        return follows

    def all_told(self, question: str) -> dict[str, list[str]]:
        """The true step in full of each variable of a question that leads to a number."""
        statements, _, _ = question.rpartition("?")
        names = [words[0] for words in map(str.split, statements.split(";")[:-1])]
        found: dict[str, list[str]] = {}
        for name in names:
            found |= {step[0]: step for step in self.told(f"{statements}? {name}")}
        return found

    def split_of(self, item: np.ndarray) -> Split:
        """A chain that shows the results on the way answers its own beginnings: so the number and the first operations
        decide, as many as the shortest chain has, and a question of a test is the beginning of no chain of training."""
        if not self.shows_steps:
            return super().split_of(item)
        return super().split_of(item[(item[:, PLACE] >= 0) & (item[:, PLACE] <= LEAST_STEPS)])

    def no_prompt(self, prompt: str) -> ValueError:
        return ValueError(
            f"not a mod_chain prompt: {prompt!r} (expected statements that give each variable once, then one of them, "
            f"with blanks between all symbols: b = a + 1 ; a = {self.modulus - 1} ; ? b)"
        )


class ChainDerivation(Derivation):
    """The chain of an item: "a = 9", "c = 9 - 5 = 4", ... up to the variable that is asked for.

    Args:
        task: the task.
        chain: the statements of the chain in order, as rows of an item.
        others: the statements that lead elsewhere.
    """

    def __init__(self, task: ModChain, chain: list[list[int]], others: list[list[int]]) -> None:
        self.task, self.chain, self.others = task, chain, others
        self.values = [chain[0][CONSTANT]]
        self.steps = [self.number(self.values[0])]
        for statement in chain[1:]:
            self.steps.append(self.step(statement, self.values[-1]))
            self.values.append(self.steps[-1].short[0])
        self.answer = [self.values[-1]]

    def number(self, value: int) -> Step:
        """The first step, which says a number."""
        return Step([self.task.modulus + self.chain[0][TARGET], self.task.equals, value], [value])

    def step(self, statement: list[int], before: int, result: int | None = None) -> Step:
        """The step that a statement makes of a value; another result may be said."""
        task = self.task
        _, target, _, operator, constant = statement
        if result is None:
            result = task.result(before, operator, constant)
        name, sign = task.modulus + target, task.modulus + len(task.names) + operator
        return Step([name, task.equals, before, sign, constant, task.equals, result], [result])

    def astray(self, place: int, most: int, draws: Draws) -> list[Step]:
        """A wrong result, or the statement of another variable with the value at hand; then on with what that gave."""
        modulus, before = self.task.modulus, self.values[place - 1]
        wrong = (self.values[place] + 1 + draws.below(modulus - 1)) % modulus
        if place == 0:
            gone = [self.number(wrong)]
        else:
            found = self.misread(place) if draws.chance(0.5) else []
            if found:
                gone = [self.step(found[draws.below(len(found))], before)]
            else:
                gone = [self.step(self.chain[place], before, wrong)]
        for statement in self.chain[place + 1 : place + most]:
            gone.append(self.step(statement, gone[-1].short[0]))
        return gone

    def misread(self, place: int) -> list[list[int]]:
        """Statements that could be taken for the one at a place, whose own variable has another value."""
        known = dict(zip((statement[TARGET] for statement in self.chain), self.values, strict=True))
        known |= {statement[TARGET]: statement[CONSTANT] for statement in self.others if statement[SOURCE] < 0}
        aside = [statement for statement in self.others if statement[SOURCE] >= 0]
        while True:  # the values of the other variables, each from the one before it
            new = [each for each in aside if each[TARGET] not in known and each[SOURCE] in known]
            if not new:
                break
            for statement in new:
                known[statement[TARGET]] = self.step(statement, known[statement[SOURCE]]).short[0]
        before = self.values[place - 1]
        return [
            statement
            for statement in self.chain[1:] + aside
            if statement is not self.chain[place] and known.get(statement[SOURCE], -1) != before
        ]
