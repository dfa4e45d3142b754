"""Chains of modular arithmetic in shuffled order: "c = a - 5 ; a = 9 ; b = c * 4 ; d = a + 1 ; ? b".

What is asked for is a number and the operations on it that lead from variable to variable; the statements stand in
random order, and some of them lead elsewhere. To answer, the variable that is asked for has to be followed back to the
number and the operations have to be done in turn, each on the result of the one before: as many sequential steps as
there are operations, or log2 of that in rounds of pairing, since the composition of two operations is one of the same
kind. It is a plain relative of i-GSM (Ye et al., arXiv 2407.20311), of which Saunshi et al., arXiv 2502.17416, use a
symbolic form for looped models.

The question stands at the end: a causal model reads all statements before it, and answers at the last symbol.
"""

import math
from string import ascii_lowercase
from typing import ClassVar

import numpy as np

from mull.training.data.task import IGNORE, Task

OPERATORS = "+-*"
PLACE, TARGET, SOURCE, OPERATOR, CONSTANT = range(5)  # columns of an item; its rows are the statements
MAX_MODULUS = 1000


class ModChain(Task):
    """One number modulo `modulus` is the answer; a guess is right 1/modulus of the time.

    Difficulty is the number of operations that lead from a number to the answer: sums, differences, and products with a
    factor that has an inverse, so that none of them makes what stands before it needless. `distractors` further
    statements lead elsewhere: the first gives another variable a number, the others do an operation on any variable
    that there is. So T = 6 (operations + distractors) + 6, and two less where there are distractors.

    The number and the operations behind an answer decide the split of an item: a chain that is asked for in a test was
    asked for in no training item, under whatever names, in whatever order and among whatever distractors.

    Args:
        operations: Default difficulty.
        modulus: What all arithmetic is modulo, 2 to 1000; every number is one symbol.
        distractors: Statements that the answer does not need.
        variables: Number of variable names, up to 702, of which an item takes some at random. It fixes the vocabulary:
            an item needs operations + 1 + distractors of them.
    """

    name: ClassVar[str] = "mod_chain"
    difficulty_name: ClassVar[str] = "operations"
    purpose: ClassVar[str] = (
        "Says what a variable is, out of assignments in shuffled order that lead to it by modular arithmetic: for "
        "seeing how many iterations a chain of operations takes."
    )

    def __init__(self, operations: int = 8, modulus: int = 23, distractors: int = 4, variables: int = 52) -> None:
        if not 2 <= modulus <= MAX_MODULUS:
            raise ValueError(f"modulus is {modulus}: it must be between 2 and {MAX_MODULUS}")
        if distractors < 0:
            raise ValueError(f"distractors is {distractors}: it must be 0 or more")
        names = [*ascii_lowercase, *(first + second for first in ascii_lowercase for second in ascii_lowercase)]
        if not 2 <= variables <= len(names):
            raise ValueError(f"variables is {variables}: it must be between 2 and {len(names)}")
        self.modulus, self.distractors, self.names = modulus, distractors, tuple(names[:variables])
        self.factors = np.array([k for k in range(1, modulus) if math.gcd(k, modulus) == 1])
        self.default_difficulty = operations
        self.resolve(operations)

    @property
    def symbols(self) -> tuple[str, ...]:
        return (*self.stop_symbols, *self.names, *OPERATORS, "=", ";", "?")

    @property
    def stop_symbols(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.modulus)))  # the answer to a prompt is one number

    def options(self) -> tuple[object, ...]:
        return (self.modulus, self.distractors, len(self.names))

    def resolve(self, difficulty: int | None) -> int:
        operations = super().resolve(difficulty)
        needed = operations + 1 + self.distractors
        if needed > len(self.names):
            raise ValueError(
                f"{operations} operations and {self.distractors} distractors need {needed} variables, "
                f"not {len(self.names)}: raise variables"
            )
        return operations

    def draw(self, rng: np.random.Generator, difficulty: int) -> np.ndarray:
        """Rows (place in the chain, or -1 off it; target; source, or -1 for a number; operator; constant), shuffled."""
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
        return item[rng.permutation(count)]

    def canonical(self, item: np.ndarray) -> bytes:
        chain = item[item[:, PLACE] >= 0]
        ordered = chain[chain[:, PLACE].argsort()]
        return ordered[:, [OPERATOR, CONSTANT]].astype("<i2").tobytes()

    def lay_out(self, items: np.ndarray, difficulty: int) -> tuple[np.ndarray, np.ndarray]:
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
        labels[:, -1] = self.values(items, difficulty)
        return input_ids, labels

    def values(self, items: np.ndarray, difficulty: int) -> np.ndarray:
        """The answers of items (B, ...): the chain, operation by operation."""
        rows = np.arange(len(items))
        value = np.zeros(len(items), dtype=np.int64)
        for place in range(difficulty + 1):
            statement = items[rows, (items[..., PLACE] == place).argmax(axis=1)]
            operator, constant = statement[:, OPERATOR], statement[:, CONSTANT]
            value = np.choose(operator, [value + constant, value - constant, value * constant]) % self.modulus
        return value

    def check(self, prompt: str, answer: str) -> bool:
        statements, question, asked = prompt.rpartition("?")
        given: dict[str, list[str]] = {}
        for words in map(str.split, statements.split(";")[:-1]):
            if len(words) not in (3, 5) or words[1] != "=" or words[0] in given:
                raise self.no_prompt(prompt)
            given[words[0]] = words[2:]
        known = set(self.names) >= given.keys() and asked.strip() in given
        if not question or statements.split(";")[-1].strip() or not known:
            raise self.no_prompt(prompt)
        chain, name = list[list[str]](), asked.strip()
        while len(chain) <= len(given):
            first, *operation = given[name]
            chain.append(operation)
            if not operation:
                break
            if first not in given:
                raise self.no_prompt(prompt)
            name = first
        else:
            raise self.no_prompt(prompt)  # a circle
        numbers = [first, *(constant for _, constant in chain[:-1])]
        operators = {operator for operator, _ in chain[:-1]}
        if not set(self.stop_symbols).issuperset(numbers) or not set(OPERATORS) >= operators:
            raise self.no_prompt(prompt)
        value = int(first)
        for operator, constant in reversed(chain[:-1]):
            change = {"+": value + int(constant), "-": value - int(constant), "*": value * int(constant)}
            value = change[operator] % self.modulus
        return answer.split() == [str(value)]

    def no_prompt(self, prompt: str) -> ValueError:
        return ValueError(
            f"not a mod_chain prompt: {prompt!r} (expected statements that give each variable once, then one of them, "
            f"with blanks between all symbols: b = a + 1 ; a = {self.modulus - 1} ; ? b)"
        )
