"""Sentences that need grammar and sense: agreement across attractors, pronouns and their referents, motives."""

import random

from replaceme.micro.questions import Question
from replaceme.micro.states import GO
from replaceme.micro.words import (
    ADJECTIVES,
    CONTAINERS,
    MEN,
    OBJECTS,
    PEOPLE,
    PLACES,
    WOMEN,
    capitalise,
    pronouns,
    word_list,
)

_ANIMATE = tuple(
    (noun, noun + "s") for noun in word_list("dog cat boy girl farmer teacher horse bird doctor sailor pilot")
)
_ANIMATE += tuple((noun, noun + "s") for noun in word_list("friend king baker singer"))
_THINGS = tuple((noun, noun + "s") for noun in word_list("key book lamp chair table flower tree house river"))
NOUNS = _ANIMATE + _THINGS
_PREPOSITIONS = ("near", "behind", "beside", "with", "in front of", "next to", "across from")
_VERBS = tuple((verb + "s", verb) for verb in word_list("run sleep sing wait work smile laugh dance swim eat"))
_VERBS_OF_TWO = tuple((verb + "s", verb) for verb in word_list("see like help follow know"))
_BE = (("is", "are"), ("was", "were"))
_MOTIVES = {
    "hungry": "kitchen",
    "tired": "bedroom",
    "dirty": "bathroom",
    "bored": "cinema",
    "curious": "museum",
    "sick": "hospital",
    "late": "station",
    "cold": "house",
    "sleepy": "bed",
    "thirsty": "well",
}
# (sentence, (word, question) when the first person is meant, (word, question) when the second is meant)
_SCHEMAS = (
    ("{a} could not lift {b} because {he} was too {w}.", ("weak", "Who was weak?"), ("heavy", "Who was heavy?")),
    (
        "{a} could not see the stage behind {b} because {he} was too {w}.",
        ("short", "Who was short?"),
        ("tall", "Who was tall?"),
    ),
    ("{a} lost the race against {b} because {he} was so {w}.", ("slow", "Who was slow?"), ("fast", "Who was fast?")),
    ("{a} asked {b} for help because {he} was {w}.", ("lost", "Who was lost?"), ("wise", "Who was wise?")),
    (
        "{a} thanked {b} because {he} had {w} help.",
        ("received", "Who received help?"),
        ("given", "Who gave help?"),
    ),
    (
        "{a} paid {b} because {he} had {w} the house.",
        ("bought", "Who bought the house?"),
        ("painted", "Who painted the house?"),
    ),
    ("{a} was angry with {b} because {he} had been {w}.", ("robbed", "Who was robbed?"), ("rude", "Who was rude?")),
    ("{a} taught {b} to read because {he} was {w}.", ("clever", "Who was clever?"), ("eager", "Who was eager?")),
)


def _agreement(rng: random.Random) -> str:
    """Return a sentence whose verb agrees with its first noun, over other nouns of either number."""
    number = rng.randint(0, 1)
    noun = rng.choice(NOUNS)
    adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.3 else ""
    subject = f"The {adjective}{noun[number]}"
    dice = rng.random()
    if dice < 0.5:
        subject += f" {rng.choice(_PREPOSITIONS)} the {rng.choice(NOUNS)[rng.randint(0, 1)]}"
    elif dice < 0.85:
        other_number = rng.randint(0, 1)
        subject += f" that the {rng.choice(_ANIMATE)[other_number]} {rng.choice(_VERBS_OF_TWO)[other_number]}"
    else:
        subject += f" in the {rng.choice(PLACES)}"
    if dice < 0.85 and rng.random() < 0.33:
        subject += f" {rng.choice(_PREPOSITIONS)} the {rng.choice(NOUNS)[rng.randint(0, 1)]}"
    if noun in _ANIMATE and rng.random() < 0.5:
        return f"{subject} {rng.choice(_VERBS)[number]} in the {rng.choice(PLACES)}."
    return f"{subject} {rng.choice(_BE)[number]} {rng.choice(['very ', 'not ', ''])}{rng.choice(ADJECTIVES)}."


def agreement_document(rng: random.Random) -> str:
    """Return two to five sentences whose subject and verb stand apart."""
    return " ".join(_agreement(rng) for _ in range(rng.randint(2, 5)))


def _too_big(rng: random.Random) -> tuple[str, Question]:
    thing, container = rng.choice(OBJECTS), rng.choice(CONTAINERS)
    verb, large, small = rng.choice([("fit in", "big", "small"), ("go into", "wide", "narrow")])
    word, answer = rng.choice([(large, thing), (small, container)])
    text = f"The {thing} does not {verb} the {container} because it is too {word}."
    return text, Question(f"What is too {word}?", answer)


def _gift(rng: random.Random) -> tuple[str, Question]:
    pair = [rng.choice(MEN), rng.choice(WOMEN)]
    rng.shuffle(pair)
    giver, taker = rng.sample(pair, 2)
    thing = rng.choice(OBJECTS)
    text = f"{pair[0]} met {pair[1]} in the {rng.choice(PLACES)}. "
    text += f"{capitalise(pronouns(giver)[0])} gave {pronouns(taker)[1]} a {thing}."
    if rng.random() < 0.5:
        return text, Question(f"Who got the {thing}?", taker)
    return text, Question(f"Who gave away the {thing}?", giver)


def _schema(rng: random.Random) -> tuple[str, Question]:
    first, second = rng.sample(rng.choice([MEN, WOMEN]), 2)
    sentence, *senses = rng.choice(_SCHEMAS)
    meant = rng.randint(0, 1)
    word, question = senses[meant]
    return sentence.format(a=first, b=second, he=pronouns(first)[0], w=word), Question(question, (first, second)[meant])


def coreference_document(rng: random.Random) -> str:
    """Return one to three sentences with a pronoun, and the question whom it means."""
    sentences = []
    for _ in range(rng.randint(1, 3)):
        text, question = rng.choices([_too_big, _gift, _schema], weights=[3, 2, 5])[0](rng)
        sentences += [text, question.answered()]
    return " ".join(sentences)


def motive_document(rng: random.Random) -> str:
    """Return sentences about two or three people, their needs and where they go."""
    sentences = []
    for person in rng.sample(PEOPLE, rng.randint(2, 3)):
        need, place = rng.choice(list(_MOTIVES.items()))
        sentences.append(f"{person} is {need}.")
        sentences.append(Question(f"Where will {person} go?", place).answered())
        sentences.append(f"{person} {rng.choice(GO)} the {place}.")
        sentences.append(Question(f"Why did {person} go to the {place}?", need).answered())
    return " ".join(sentences)
