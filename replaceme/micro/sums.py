"""Sums within 0..20, written in words, as formulas and as the purses of two people.

An eighth of all sums of the harder forms, by `held_out`, occurs in the task alone and never in a document.
"""

import random

from replaceme.micro.questions import Question, held_out
from replaceme.micro.words import NUMBERS, PEOPLE, capitalise, pick_choices

_TERMS = 5


def _walk(rng: random.Random, length: int) -> list[int]:
    """Return signed numbers, the first positive, whose running totals stay within 0..20."""
    terms = [rng.randint(1, 10)]
    while len(terms) < length:
        total = sum(terms)
        terms.append(rng.choice([step for step in range(-10, 11) if step and 0 <= total + step <= 20]))
    return terms


def _kept_walk(rng: random.Random, length: int, of_training: bool) -> list[int]:
    while True:
        terms = _walk(rng, length)
        if held_out(" ".join(map(str, terms))) != of_training:
            return terms


def _question(rng: random.Random, text: str, result: int) -> Question:
    near = [NUMBERS[number] for number in sorted(range(21), key=lambda number: abs(number - result))]
    return Question(text, NUMBERS[result], pick_choices(rng, NUMBERS[result], near))


def _formula(rng: random.Random, of_training: bool) -> tuple[str, Question]:
    first, *rest = _kept_walk(rng, _TERMS, of_training)
    text = NUMBERS[first] + "".join(f" {'plus' if term > 0 else 'minus'} {NUMBERS[abs(term)]}" for term in rest)
    return "", _question(rng, f"What is {text}?", first + sum(rest))


def _purses(rng: random.Random, of_training: bool) -> tuple[str, Question]:
    """Return a text in which two people gain and lose coins in turn, and the question how many one of them has."""
    people = rng.sample(PEOPLE, 2)
    walks = [_kept_walk(rng, 4, of_training) for _ in people]
    told = [f"{person} had {NUMBERS[walk[0]]} coins." for person, walk in zip(people, walks, strict=True)]
    turns = [0, 0, 0, 1, 1, 1]
    rng.shuffle(turns)
    steps = [iter(walk[1:]) for walk in walks]
    for turn in turns:
        step = next(steps[turn])
        told.append(f"{people[turn]} {'found' if step > 0 else 'lost'} {NUMBERS[abs(step)]}.")
    asked = rng.randint(0, 1)
    return " ".join(told), _question(rng, f"How many has {people[asked]}?", sum(walks[asked]))


def _sum(rng: random.Random, of_training: bool) -> tuple[str, Question]:
    return _formula(rng, of_training) if rng.random() < 0.5 else _purses(rng, of_training)


def document(rng: random.Random) -> str:
    """Return a document of short sums, counting, and longer sums with their results."""
    parts = []
    for _ in range(rng.randint(2, 5)):
        dice = rng.random()
        first, second = rng.randint(0, 10), rng.randint(0, 10)
        rest, part, whole = NUMBERS[first], NUMBERS[second], NUMBERS[first + second]
        if dice < 0.1:
            parts.append(f"{capitalise(rest)} plus {part} is {whole}.")
        elif dice < 0.2:
            parts.append(f"{capitalise(whole)} minus {part} is {rest}.")
        elif dice < 0.25:
            parts.append("Count: " + ", ".join(NUMBERS[first : first + rng.randint(3, 6)]) + ".")
        else:
            told, question = _sum(rng, of_training=True)
            parts.append(f"{told} {question.answered()}".strip())
    return " ".join(parts)


def item(rng: random.Random) -> tuple[str, Question]:
    """Return a longer sum that no document contains."""
    return _sum(rng, of_training=False)
