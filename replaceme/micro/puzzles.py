"""Small puzzles whose premises stand in the text: orders, maps, kinds of animals, sums."""

import itertools
import random

from replaceme.micro.questions import Question
from replaceme.micro.words import (
    ANIMALS,
    COLOURS,
    CONTAINERS,
    PEOPLE,
    PLACES,
    capitalise,
    pick_choices,
    shuffled,
)

# (more, less, most, least, whether people are compared)
_SCALES = (
    ("bigger", "smaller", "biggest", "smallest", False),
    ("heavier", "lighter", "heaviest", "lightest", False),
    ("taller", "shorter", "tallest", "shortest", True),
    ("older", "younger", "oldest", "youngest", True),
    ("faster", "slower", "fastest", "slowest", True),
)
_OPPOSITES = (("north", "south"), ("east", "west"))


# -------------------------------------------------------------------- orders
class Order:
    """Three or four people or things along one scale, described by comparisons of neighbours in random order."""

    def __init__(self, rng: random.Random, size: int) -> None:
        self.rng = rng
        self.more, self.less, self.most, self.least, self.are_people = rng.choice(_SCALES)
        self.ranked = rng.sample(PEOPLE if self.are_people else CONTAINERS, size)
        self.told = shuffled(rng, self._comparisons())

    def _name(self, member: str) -> str:
        return member if self.are_people else f"the {member}"

    def _comparisons(self) -> list[str]:
        sentences = []
        for above, below in itertools.pairwise(self.ranked):
            above, below = self._name(above), self._name(below)
            told_from_above = self.rng.random() < 0.6
            sentence = (
                f"{above} is {self.more} than {below}" if told_from_above else f"{below} is {self.less} than {above}"
            )
            sentences.append(capitalise(sentence) + ".")
        return sentences

    def ask_rank(self, rank: int) -> Question:
        """Ask who or what comes first (rank 0) or second (rank 1) from either end."""
        from_top = self.rng.random() < 0.5
        answer = self.ranked[rank] if from_top else self.ranked[-1 - rank]
        question = f"{'Who' if self.are_people else 'Which'} is the {'second ' * rank}"
        question += f"{self.most if from_top else self.least}?"
        return Question(question, answer, pick_choices(self.rng, answer, self.ranked))

    def ask_pair(self) -> Question:
        """Ask whether one of two is above the other."""
        first, second = self.rng.sample(range(len(self.ranked)), 2)
        upwards = self.rng.random() < 0.5
        relation = self.more if upwards else self.less
        holds = (first < second) == upwards
        question = f"Is {self._name(self.ranked[first])} {relation} than {self._name(self.ranked[second])}?"
        return Question(question, "yes" if holds else "no", ("yes", "no"))


def order_document(rng: random.Random) -> str:
    """Return the text of an order and one to three questions about it."""
    order = Order(rng, rng.randint(3, 4))
    questions = [
        order.ask_rank(rng.randint(0, 1)) if rng.random() < 0.75 else order.ask_pair() for _ in range(rng.randint(1, 3))
    ]
    return " ".join([*order.told, *(question.answered() for question in questions)])


def order_item(rng: random.Random) -> tuple[str, Question]:
    """Return the text of an order of four members and the question for the first or second from one end."""
    order = Order(rng, 4)
    return " ".join(order.told), order.ask_rank(rng.randint(0, 1))


# -------------------------------------------------------------------- maps
class Map:
    """A chain of places, each north, south, east or west of the next."""

    def __init__(self, rng: random.Random, size: int) -> None:
        self.rng = rng
        self.places = rng.sample(PLACES, size)
        self.relations: list[tuple[str, str, str]] = []
        sentences = []
        for place, other in itertools.pairwise(self.places):
            there, back = shuffled(rng, rng.choice(_OPPOSITES))
            sentences.append(f"The {place} is {there} of the {other}.")
            self.relations += [(place, there, other), (other, back, place)]
        self.told = shuffled(rng, sentences)

    def ask(self) -> Question | None:
        """Ask what lies in one direction of a place, where the answer is unique."""
        place, direction, other = self.rng.choice(self.relations)
        if sum(relation[1:] == (direction, other) for relation in self.relations) > 1:
            return None
        pool = shuffled(self.rng, [name for name in self.places if name != other])
        pool += [name for name in shuffled(self.rng, PLACES) if name != other]
        return Question(f"What is {direction} of the {other}?", place, pick_choices(self.rng, place, pool))


def map_document(rng: random.Random) -> str:
    """Return the text of a map and up to three questions about it."""
    chart = Map(rng, rng.randint(3, 5))
    questions = [chart.ask() for _ in range(rng.randint(1, 3))]
    return " ".join([*chart.told, *(question.answered() for question in questions if question)])


def map_item(rng: random.Random) -> tuple[str, Question]:
    """Return the text of a map of four or five places and one question."""
    while True:
        chart = Map(rng, rng.randint(4, 5))
        question = chart.ask()
        if question:
            return " ".join(chart.told), question


# -------------------------------------------------------------------- kinds
def _fears(rng: random.Random) -> tuple[str, list[Question]]:
    """Return a puzzle of deduction: somebody's fear follows from the kind of animal that he or she is."""
    kinds, names = rng.sample(ANIMALS, 4), rng.sample(PEOPLE, 3)
    feared = [rng.choice([other for other in kinds if other != kind]) for kind in kinds[:3]]
    told = [f"Every {kind} fears the {fear}." for kind, fear in zip(kinds, feared, strict=False)]
    told += [f"{name} is a {kind}." for name, kind in zip(names, kinds, strict=False)]
    questions = [
        Question(f"What does {name} fear?", fear, pick_choices(rng, fear, shuffled(rng, kinds)))
        for name, fear in zip(names, feared, strict=True)
    ]
    return " ".join(shuffled(rng, told)), questions


def _colours(rng: random.Random) -> tuple[str, list[Question]]:
    """Return a puzzle of induction: somebody's colour follows from the colour of another animal of the same kind."""
    kinds, colours, names = rng.sample(ANIMALS, 3), rng.sample(COLOURS, 3), rng.sample(PEOPLE, 6)
    told = [f"{name} is a {kind}." for name, kind in zip(names, kinds, strict=False)]
    told += [f"{name} is {colour}." for name, colour in zip(names, colours, strict=False)]
    told = shuffled(rng, told) + shuffled(
        rng, [f"{name} is a {kind}." for name, kind in zip(names[3:], kinds, strict=True)]
    )
    questions = [
        Question(
            f"What colour is {name}?",
            colour,
            pick_choices(rng, colour, shuffled(rng, colours) + shuffled(rng, COLOURS)),
        )
        for name, colour in zip(names[3:], colours, strict=True)
    ]
    return " ".join(told), questions


def kinds_document(rng: random.Random) -> str:
    """Return a text about animals with names, and questions about one to three of them."""
    told, questions = _fears(rng) if rng.random() < 0.75 else _colours(rng)
    rng.shuffle(questions)
    return " ".join([told, *(question.answered() for question in questions[: rng.randint(1, 3)])])


def kinds_item(rng: random.Random) -> tuple[str, Question]:
    """Return a text about animals with names, and the question what one of them fears."""
    told, questions = _fears(rng)
    return told, rng.choice(questions)
