"""A fixed body of invented geography, to be memorised from the documents, and questions that need it.

The towns, rivers and rulers are made of syllables with a fixed seed, so that the same facts hold in every stream.
"""

import random

from replaceme.micro.questions import Question, held_out
from replaceme.micro.words import ANIMALS, COLOURS, FOODS, PEOPLE, pick_choices, shuffled, word_list

_SYLLABLES = word_list("ba lo mi ren ka tu vel so dra ni pel go shu ra fen di mar ko zel tha")
_GOODS = word_list("wool silver salt silk glass paper iron wood wine oil tea sugar")
_HOMES = word_list("den nest barn cave hole pond tree field")
_lore = random.Random("micro world, facts")  # fixed: every stream of documents shares these facts


def _invent_names(count: int, taken: set[str]) -> tuple[str, ...]:
    names: list[str] = []
    while len(names) < count:
        name = "".join(_lore.choice(_SYLLABLES) for _ in range(_lore.choice([2, 3]))).capitalize()
        if name not in taken:
            taken.add(name)
            names.append(name)
    return tuple(names)


_taken: set[str] = set(PEOPLE)
TOWNS = _invent_names(320, _taken)
RIVERS = _invent_names(12, _taken)
RULERS = _invent_names(16, _taken)

# attribute: (question about a town, statement, question about the town of a person, possible values)
TOWN_FACTS = {
    "river": (
        "Which river runs through {x}?",
        "The river {value} runs through {x}.",
        "Which river runs through the town of {person}?",
        RIVERS,
    ),
    "ruler": ("Who rules {x}?", "{x} is ruled by {value}.", "Who rules the town of {person}?", RULERS),
    "food": (
        "What do the people of {x} eat?",
        "The people of {x} eat {value}.",
        "What does {person} eat?",
        FOODS,
    ),
    "flag": (
        "What colour is the flag of {x}?",
        "The flag of {x} is {value}.",
        "What colour is the flag of {person}?",
        COLOURS,
    ),
    "goods": (
        "What is made in {x}?",
        "The town of {x} is known for its {value}.",
        "What is made in the town of {person}?",
        _GOODS,
    ),
    "animal": (
        "Which animal is the sign of {x}?",
        "The sign of {x} is the {value}.",
        "Which animal is the sign of the town of {person}?",
        ANIMALS,
    ),
}
# attribute: which of several people comes from a town with that value
PERSON_FACTS = {
    "river": "Who lives by the river {value}?",
    "ruler": "Who is ruled by {value}?",
    "food": "Who eats {value}?",
    "flag": "Who has a {value} flag?",
    "goods": "Who comes from a town that makes {value}?",
    "animal": "Who has the sign of the {value}?",
}
ANIMAL_FACTS = {
    "food": ("What does a {x} eat?", "Every {x} likes to eat {value}.", FOODS),
    "home": ("Where does a {x} live?", "A {x} lives in a {value}.", _HOMES),
    "colour": ("What colour is a {x}?", "A {x} is {value}.", COLOURS),
    "fear": ("What is a {x} afraid of?", "A {x} is afraid of a {value}.", ANIMALS),
}
TOWN_VALUES = {town: {attribute: _lore.choice(entry[3]) for attribute, entry in TOWN_FACTS.items()} for town in TOWNS}
ANIMAL_VALUES = {
    animal: {
        attribute: _lore.choice([value for value in entry[2] if value != animal])
        for attribute, entry in ANIMAL_FACTS.items()
    }
    for animal in ANIMALS
}


def _statement_and_question(rng: random.Random) -> tuple[str, Question]:
    if rng.random() < 0.85:
        subject, attribute = rng.choice(TOWNS), rng.choice(list(TOWN_FACTS))
        question, statement, _, _ = TOWN_FACTS[attribute]
        value = TOWN_VALUES[subject][attribute]
    else:
        subject, attribute = rng.choice(ANIMALS), rng.choice(list(ANIMAL_FACTS))
        question, statement, _ = ANIMAL_FACTS[attribute]
        value = ANIMAL_VALUES[subject][attribute]
    return statement.format(x=subject, value=value), Question(question.format(x=subject), value)


def _portrait(rng: random.Random) -> str:
    """Return several facts about one town."""
    town = rng.choice(TOWNS)
    attributes = shuffled(rng, TOWN_FACTS)[: rng.randint(3, 6)]
    facts = [TOWN_FACTS[attribute][1].format(x=town, value=TOWN_VALUES[town][attribute]) for attribute in attributes]
    return " ".join([f"{town} is a town.", *facts])


def _settle(rng: random.Random, count: int, of_training: bool) -> dict[str, str]:
    """Return people and their towns, drawn for a task or for a document.

    The pairs are split: `held_out` ones occur in the task alone, all others in documents alone.
    """
    homes: dict[str, str] = {}
    while len(homes) < count:
        person, town = rng.choice(PEOPLE), rng.choice(TOWNS)
        if person not in homes and town not in homes.values() and held_out(f"{person} {town}") != of_training:
            homes[person] = town
    return homes


def _tell(homes: dict[str, str]) -> list[str]:
    return [f"{person} lives in {town}." for person, town in homes.items()]


def _town_of_person(rng: random.Random, of_training: bool, with_guests: bool) -> tuple[str, Question]:
    """Return a text about two people, at times with guests, and a question about the town of one of them."""
    homes = _settle(rng, 2, of_training)
    told, asked, attribute = _tell(homes), next(iter(homes)), rng.choice(list(TOWN_FACTS))
    if with_guests:
        guests = rng.sample([person for person in PEOPLE if person not in homes], 2)
        told += [f"{guest} lives with {host}." for guest, host in zip(guests, homes, strict=True)]
        asked = guests[0]
    _, _, question, pool = TOWN_FACTS[attribute]
    answer, other = (TOWN_VALUES[town][attribute] for town in homes.values())
    choices = pick_choices(rng, answer, [other, *shuffled(rng, pool)])
    return " ".join(shuffled(rng, told)), Question(question.format(person=asked), answer, choices)


def _person_of_town(rng: random.Random, of_training: bool) -> tuple[str, Question]:
    """Return a text about four people and their towns, and the question which of them a memorised fact points to."""
    while True:
        homes, attribute = _settle(rng, 4, of_training), rng.choice(list(TOWN_FACTS))
        values = [TOWN_VALUES[town][attribute] for town in homes.values()]
        if values.count(values[0]) == 1:
            break
    answer, *others = homes
    question = PERSON_FACTS[attribute].format(value=values[0])
    return " ".join(shuffled(rng, _tell(homes))), Question(question, answer, pick_choices(rng, answer, others))


def _home(rng: random.Random, of_training: bool) -> tuple[str, Question]:
    dice = rng.random()
    return _person_of_town(rng, of_training) if dice < 0.3 else _town_of_person(rng, of_training, dice < 0.65)


def document(rng: random.Random) -> str:
    """Return a document about towns: a portrait, single facts or questions, or people and the facts of their towns."""
    dice = rng.random()
    if dice < 0.35:
        return _portrait(rng)
    sentences = []
    for _ in range(rng.randint(2, 5)):
        if dice < 0.65:
            statement, question = _statement_and_question(rng)
            sentences.append(statement if rng.random() < 0.4 else question.answered())
        else:
            told, question = _home(rng, of_training=True)
            sentences += [told, question.answered()]
    return " ".join(sentences)


def item(rng: random.Random) -> tuple[str, Question]:
    """Return a text and a question that joins its homes with memorised facts, for pairs never seen in training."""
    return _home(rng, of_training=False)
