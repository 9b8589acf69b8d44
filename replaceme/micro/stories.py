"""Short stories whose last word follows from the sentences before."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from replaceme.micro.language import NOUNS
from replaceme.micro.states import Scene
from replaceme.micro.words import (
    ADJECTIVES,
    ANIMALS,
    COLOURS,
    FOODS,
    OBJECTS,
    PEOPLE,
    PLACES,
    aside,
    capitalise,
    pronouns,
)


@dataclass(frozen=True)
class Story:
    """The sentences of a story, then its last sentence without the last word, and that word."""

    sentences: list[str]
    ending: str
    last_word: str


def _lost_thing(rng: random.Random) -> Story:
    (owner, friend), (thing, other, cover) = rng.sample(PEOPLE, 2), rng.sample(OBJECTS, 3)
    (place, there), (he, him, his), she = rng.sample(PLACES, 2), pronouns(owner), pronouns(friend)[0]
    sentences = [
        rng.choice(
            [
                f"{owner} lost {his} {thing}.",
                f"One morning {owner} could not find {his} {thing}.",
                f"{owner} had a {rng.choice(COLOURS)} {thing}. One day it was gone.",
            ]
        ),
        f"{capitalise(he)} looked for it in the {place}, but it was not there.",
        rng.choice(
            [
                f"In the {place} {he} found only a {other}.",
                f"{capitalise(he)} saw a {other} there, but that was not what {he} wanted.",
            ]
        ),
        f"{friend} wanted to help {him} and searched the {there}.",
    ]
    if rng.random() < 0.5:
        sentences.append(f"After a long time {she} called {him} to the {there}.")
    endings = [
        f"There, under a {cover}, was the",
        f"{owner} was happy because {friend} had found {his}",
        f"In the end {friend} gave {him} back the",
    ]
    return Story(sentences, rng.choice(endings), thing)


def _present(rng: random.Random) -> Story:
    (buyer, friend), (thing, other) = rng.sample(PEOPLE, 2), rng.sample(OBJECTS, 2)
    (colour, other_colour), he = rng.sample(COLOURS, 2), pronouns(buyer)[0]
    sentences = [
        f"It was the birthday of {friend}.",
        f"{buyer} wanted to buy a present for {pronouns(friend)[1]}.",
        f"In the shop {he} saw a {colour} {thing} and a {other_colour} {other}.",
        rng.choice(
            [
                f"The {other} was too dear, so {he} chose the other one.",
                f"{capitalise(he)} did not like the {other}.",
                f"The {other} was broken.",
            ]
        ),
        f"{capitalise(he)} paid, went to the {rng.choice(PLACES)}, and gave {friend} the box.",
    ]
    ending = rng.choice([f"{friend} opened the box and saw the", f"{friend} thanked {buyer} for the {colour}"])
    return Story(sentences, ending, thing)


def _left_behind(rng: random.Random) -> Story:
    (first, second), (goal, forgotten) = rng.sample(PEOPLE, 2), rng.sample(OBJECTS, 2)
    (start, there), (he, _, his) = rng.sample(PLACES, 2), pronouns(first)
    sentences = [
        f"{first} and {second} went from the {start} to the {there}.",
        f"They wanted to see the {goal} there.",
        f"On the way {first} said that {he} had left {his} {forgotten} in the {start}.",
    ]
    if rng.random() < 0.5:
        sentences.append(f"{second} was {rng.choice(ADJECTIVES)}, but {pronouns(second)[0]} did not mind.")
    endings = ["So they turned around and went back to the", "They could not go on without it, so they returned to the"]
    return Story(sentences, rng.choice(endings), start)


def _asked(rng: random.Random) -> Story:
    (first, second), (thing, near), place = rng.sample(PEOPLE, 2), rng.sample(OBJECTS, 2), rng.choice(PLACES)
    sentences = [f'{first} asked {second}, "Where is my {thing}?"', f'"It is in the {place}," said {second}.']
    if rng.random() < 0.6:
        sentences.append(f'"I saw it beside the {near}."')
    sentences.append(f"{first} went to look and came back with the {thing}.")
    if rng.random() < 0.5:
        return Story(sentences, f'"Thank you for your help," {pronouns(first)[0]} said to', second)
    return Story(sentences, f'"You were right," said {first}. The {thing} was in the', place)


def _dinner(rng: random.Random) -> Story:
    (cook, friend), (dish, missing) = rng.sample(PEOPLE, 2), rng.sample(FOODS, 2)
    sentences = [
        f"{cook} was hungry and wanted to cook {dish}.",
        f"But there was no {missing} in the kitchen.",
        f"{capitalise(pronouns(cook)[0])} went to the market with {friend} and bought {missing}.",
        rng.choice(
            [
                f"{friend} carried the basket home.",
                f"On the way home they met a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)[0]}.",
                "It was cold and they walked fast.",
            ]
        ),
    ]
    endings = [
        f"That evening {cook} and {friend} sat down and ate the",
        "An hour later the house smelled of",
    ]
    return Story(sentences, rng.choice(endings), dish)


def _race(rng: random.Random) -> Story:
    first, second, third = rng.sample(PEOPLE, 3)
    fallen, tired = rng.sample([first, second], 2)
    sentences = [
        f"{first}, {second} and {third} ran a race to the {rng.choice(PLACES)}.",
        f"At first {first} was ahead of {second} and {third}.",
        f"But {fallen} fell over a {rng.choice(OBJECTS)}, and {tired} had to stop for breath.",
    ]
    return Story(sentences, rng.choice(["So the winner of the race was", "In the end everybody cheered for"]), third)


def _runaway(rng: random.Random) -> Story:
    (first, second), (animal, other) = rng.sample(PEOPLE, 2), rng.sample(ANIMALS, 2)
    place, searched, found = rng.sample(PLACES, 3)
    sentences = [
        f"{first} had a {animal} and {second} had a {other}.",
        f"Every day {first} played with {pronouns(first)[2]} {animal} in the {place}.",
        rng.choice(
            [f"One day the door was open and the {animal} ran away.", f"One night the {animal} was gone."],
        ),
        f"{first} and {second} looked everywhere, even in the {searched}.",
    ]
    if rng.random() < 0.5:
        sentences.append(f"The {other} of {second} came along with them.")
    endings = [f"At last, behind the {found}, they heard the", f"It was {second} who found the"]
    return Story(sentences, rng.choice(endings), animal)


def _two_boxes(rng: random.Random) -> Story:
    (first, second), things, colours = rng.sample(PEOPLE, 2), rng.sample(OBJECTS, 2), rng.sample(COLOURS, 2)
    he, him, _ = pronouns(first)
    sentences = [
        f"{first} put the {things[0]} in the {colours[0]} box and the {things[1]} in the {colours[1]} box.",
        rng.choice(
            [
                f"Then {he} went to the {rng.choice(PLACES)}.",
                f"After that {he} slept for an hour.",
                f"{second} watched {him} from the {rng.choice(PLACES)}.",
            ]
        ),
    ]
    if rng.random() < 0.5:
        sentences.append(f"{second} came in and was curious.")
    asked = rng.randint(0, 1)
    box = f"the {colours[asked]} box"
    endings = [
        f"{second} opened {box} and found the",
        f"When {second} looked into {box}, {pronouns(second)[0]} saw the",
    ]
    return Story(sentences, rng.choice(endings), things[asked])


def _work(rng: random.Random) -> Story:
    people, (first, second, meeting) = rng.sample(PEOPLE, 2), rng.sample(PLACES, 3)
    sentences = [
        f"{people[0]} works in the {first} and {people[1]} works in the {second}.",
        f"Both of them like {rng.choice(FOODS)}.",
        f"In the evening they meet in the {meeting}.",
    ]
    asked = rng.randint(0, 1)
    endings = [
        f"In the morning {people[asked]} goes back to the",
        f"The next day {people[asked]} must be in the",
    ]
    return Story(sentences, rng.choice(endings), (first, second)[asked])


def _whereabouts(rng: random.Random) -> Story:
    """Return a story of people who walk about with things; at the end one must be where the events left it."""
    while True:
        scene = Scene(rng)
        sentences = [scene.tell() for _ in range(rng.randint(5, 8))]
        person, thing = rng.choice(scene.people), rng.choice(scene.objects)
        kind = rng.randint(0, 2)
        if kind == 0 and scene.person_trail[person]:
            return Story(sentences, f"When night came, {person} was still in the", scene.person_trail[person][-1])
        if kind == 1 and scene.object_trail[thing]:
            return Story(sentences, f"The next day somebody saw the {thing} in the", scene.object_trail[thing][-1])
        if kind == 2 and scene.holder[thing]:
            return Story(sentences, f"So in the end the {thing} was in the hands of", scene.holder[thing])


_PLOTS: tuple[Callable[[random.Random], Story], ...] = (
    _lost_thing,
    _present,
    _left_behind,
    _asked,
    _dinner,
    _race,
    _runaway,
    _two_boxes,
    _work,
)


def story(rng: random.Random) -> Story:
    """Return a story of one of ten plots, now and then with an aside."""
    told = (_whereabouts if rng.random() < 0.4 else rng.choice(_PLOTS))(rng)
    if rng.random() < 0.15:
        told.sentences.insert(rng.randint(1, len(told.sentences)), aside(rng))
    return told


def document(rng: random.Random) -> str:
    """Return a story with its ending."""
    told = story(rng)
    return " ".join([*told.sentences, f"{told.ending} {told.last_word}."])
