"""The words of the micro world and the small grammar that its sentences need."""

import random
import re
from collections.abc import Iterable, Sequence


def word_list(words: str) -> tuple[str, ...]:
    """Return the words of a text, in order."""
    return tuple(words.split())


MEN = word_list(
    "Tom John Sam Ben Fred Bill Jack Daniel Peter Hugo Leo Max Oscar Paul Adam Eric Felix George Henry Ivan"
)
WOMEN = word_list(
    "Mary Anna Lucy Sara Emma Kate Julie Nina Olga Rosa Alice Clara Diana Ella Fiona Grace Helen Ida Jane Lily"
)
PEOPLE = MEN + WOMEN
PLACES = word_list(
    "kitchen garden bedroom bathroom hallway office school park cinema garage attic cellar library market station "
    "museum stable barn beach forest"
)
OBJECTS = word_list(
    "apple ball book lamp key coin hat ring doll pen clock bottle map rope basket candle flute drum kite spoon scarf "
    "letter shell mirror brush cup hammer ticket"
)
CONTAINERS = word_list("box chest suitcase chocolate container bag crate bucket barrel jar pot drawer")
COLOURS = word_list("red blue green yellow black white brown grey pink purple")
FOODS = word_list("bread cheese soup rice fish honey cake pie stew salad pasta nuts berries corn beans")
ANIMALS = word_list(
    "wolf mouse sheep lion frog swan rabbit goat duck fox bear owl pig cow hen snake tiger donkey camel eagle"
)
ADJECTIVES = word_list(
    "old young big small happy sad tall short new clean dirty quiet loud strong weak kind brave pretty"
)
NUMBERS = word_list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
HOURS = NUMBERS[1:13]
ASIDES = (
    "The sun was shining.",
    "It was a quiet day.",
    "Rain fell on the roof.",
    "A bird sang outside.",
    "Nobody said a word.",
    "The wind was cold.",
    "Everyone was happy.",
    "It was getting late.",
    "A dog barked far away.",
    "The clock struck {hour}.",
)


def pronouns(person: str) -> tuple[str, str, str]:
    """Return subject, object and possessive pronoun of a person."""
    return ("he", "him", "his") if person in MEN else ("she", "her", "her")


def capitalise(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[0].upper() + text[1:]


def with_articles(text: str) -> str:
    """Write `an` before a vowel: "a owl" becomes "an owl"."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def aside(rng: random.Random) -> str:
    """Return a sentence that has no consequence."""
    return rng.choice(ASIDES).replace("{hour}", rng.choice(HOURS))


def shuffled(rng: random.Random, items: Iterable[str]) -> list[str]:
    """Return the items in random order, as a new list."""
    result = list(items)
    rng.shuffle(result)
    return result


def pick_choices(rng: random.Random, answer: str, distractors: Sequence[str], count: int = 4) -> tuple[str, ...]:
    """Return `count` distinct choices in random order: the answer and the first distractors that differ from it.

    Distractors come in order of preference, so the words of the story itself can come before all others.
    """
    distinct = dict.fromkeys(word for word in distractors if word != answer)
    return tuple(shuffled(rng, [answer, *list(distinct)[: count - 1]]))


def sentence_words(text: str) -> list[str]:
    """Return words and punctuation marks, as the tokenizer of the model splits them."""
    return re.findall(r"\w+|[^\w\s]", text)
