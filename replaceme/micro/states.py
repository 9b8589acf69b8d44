"""State tracking: people walk about, take, drop and hand over things, and questions ask where everything is."""

import itertools
import random

from replaceme.micro.questions import Question
from replaceme.micro.words import (
    OBJECTS,
    PEOPLE,
    PLACES,
    aside,
    capitalise,
    pick_choices,
    pronouns,
    shuffled,
    word_list,
)

GO = ("went to", "walked to", "moved to", "ran to", "travelled to", "came to", "returned to")
TAKE = ("took", "picked up", "grabbed", "got")
DROP = ("dropped", "put down", "left", "discarded")
GIVE = ("gave", "handed", "passed")
LATER = ("Then", "After that", "Later", "Soon", "A moment later", "Next")
COUNTS = ("none", "one", "two", "three", "four")
DOCUMENT_QUESTIONS = word_list(
    "where object object before before before whether count list who who giver"
)  # repeated: more often


class Scene:
    """A handful of people, things and places, and their state after the sentences so far."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.people = rng.sample(PEOPLE, rng.randint(2, 4))
        self.objects = rng.sample(OBJECTS, rng.randint(2, 4))
        self.places = rng.sample(PLACES, rng.randint(3, 6))
        self.person_trail: dict[str, list[str]] = {person: [] for person in self.people}
        self.object_trail: dict[str, list[str]] = {thing: [] for thing in self.objects}
        self.holder: dict[str, str | None] = dict.fromkeys(self.objects)
        self.last_actor: str | None = None
        self.last_gift: tuple[str, str, str] | None = None

    def tell(self) -> str:
        """Let something happen and return the sentence that tells it."""
        while True:
            person = self._next_actor()
            dice = self.rng.random()
            if not self.person_trail[person] or dice < 0.45:
                return self._walk(person, dice)
            sentence = self._take(person) if dice < 0.72 else self._let_go(person)
            if sentence:
                self.last_actor = person
                return sentence

    def ask(self, kind: str) -> Question | None:
        """Return a question of the given kind, or None when the story so far has no answer to it."""
        return getattr(self, f"_ask_{kind}")()

    # ---------------------------------------------------------------- events
    def _next_actor(self) -> str:
        if self.last_actor and self.rng.random() < 0.3:
            return self.last_actor
        return self.rng.choice(self.people)

    def _subject(self, person: str) -> str:
        rng = self.rng
        if person == self.last_actor and rng.random() < 0.5:
            pronoun = pronouns(person)[0]
            return f"{rng.choice(LATER)} {pronoun}" if rng.random() < 0.6 else capitalise(pronoun)
        return f"{rng.choice(LATER)} {person}" if rng.random() < 0.15 else person

    def _where(self, person: str) -> str | None:
        return self.person_trail[person][-1] if self.person_trail[person] else None

    def _walk(self, person: str, dice: float) -> str:
        rng, here = self.rng, self._where(person)
        other = rng.choice([candidate for candidate in self.people if candidate != person])
        there = self._where(other)
        if dice < 0.04 and here and there and here != there:
            sentence = f"{self._subject(person)} followed {other} to the {there}."
            self._move(person, there)
            self.last_actor = person
            return sentence
        place = rng.choice([place for place in self.places if place != here])
        if dice > 0.40 and len(self.people) > 2:
            self._move(person, place)
            self._move(other, place)
            self.last_actor = None
            return f"{person} and {other} {rng.choice(GO)} the {place}."
        sentence = f"{self._subject(person)} {rng.choice(GO)} the {place}."
        self._move(person, place)
        self.last_actor = person
        return sentence

    def _take(self, person: str) -> str | None:
        here = self._where(person)
        if len(self._held(person)) >= 3:
            return None
        free = [
            thing
            for thing in self.objects
            if self.holder[thing] is None and (not self.object_trail[thing] or self.object_trail[thing][-1] == here)
        ]
        if not free:
            return None
        thing = self.rng.choice(free)
        self.holder[thing] = person
        self._put(thing, here)
        return f"{self._subject(person)} {self.rng.choice(TAKE)} the {thing}{self._there()}"

    def _let_go(self, person: str) -> str | None:
        rng, held = self.rng, self._held(person)
        if not held:
            return None
        thing = rng.choice(held)
        near = [other for other in self.people if other != person and self._where(other) == self._where(person)]
        if near and rng.random() < 0.6:
            other, verb = rng.choice(near), rng.choice(GIVE)
            self.holder[thing] = other
            self.last_gift = (person, thing, other)
            gift = f"the {thing} to {other}" if rng.random() < 0.6 else f"{other} the {thing}"
            return f"{self._subject(person)} {verb} {gift}."
        self.holder[thing] = None
        return f"{self._subject(person)} {rng.choice(DROP)} the {thing}{self._there()}"

    def _there(self) -> str:
        return " there." if self.rng.random() < 0.2 else "."

    def _held(self, person: str) -> list[str]:
        return [thing for thing in self.objects if self.holder[thing] == person]

    def _put(self, thing: str, place: str) -> None:
        if not self.object_trail[thing] or self.object_trail[thing][-1] != place:
            self.object_trail[thing].append(place)

    def _move(self, person: str, place: str) -> None:
        if self._where(person) != place:
            self.person_trail[person].append(place)
        for thing in self._held(person):
            self._put(thing, place)

    # ---------------------------------------------------------------- questions
    def _place_choices(self, answer: str, excluded: str | None = None) -> tuple[str, ...]:
        pool = [place for place in shuffled(self.rng, self.places) + shuffled(self.rng, PLACES) if place != excluded]
        return pick_choices(self.rng, answer, pool)

    def _people_choices(self, answer: str) -> tuple[str, ...]:
        return pick_choices(self.rng, answer, shuffled(self.rng, self.people) + shuffled(self.rng, PEOPLE))

    def _placed_person(self) -> str | None:
        placed = [person for person in self.people if self.person_trail[person]]
        return self.rng.choice(placed) if placed else None

    def _ask_where(self) -> Question | None:
        person = self._placed_person()
        if person is None:
            return None
        place = self._where(person)
        return Question(f"Where is {person}?", place, self._place_choices(place))

    def _ask_object(self) -> Question | None:
        placed = [thing for thing in self.objects if self.object_trail[thing]]
        if not placed:
            return None
        thing = self.rng.choice(placed)
        place = self.object_trail[thing][-1]
        return Question(f"Where is the {thing}?", place, self._place_choices(place))

    def _ask_before(self) -> Question | None:
        """Ask for the place of something or somebody before a place that it came to exactly once."""
        trails = [(f"the {thing}", trail) for thing, trail in self.object_trail.items()]
        steps = _unique_steps(trails)
        if self.rng.random() < 0.3 or not steps:
            steps += _unique_steps(list(self.person_trail.items()))
        if not steps:
            return None
        who, now, before = self.rng.choice(steps)
        return Question(f"Where was {who} before the {now}?", before, self._place_choices(before, excluded=now))

    def _ask_whether(self) -> Question | None:
        person = self._placed_person()
        if person is None:
            return None
        here = self._where(person)
        if self.rng.random() < 0.5:
            return Question(f"Is {person} in the {here}?", "yes", ("yes", "no"))
        other = self.rng.choice([place for place in self.places if place != here])
        return Question(f"Is {person} in the {other}?", "no", ("yes", "no"))

    def _ask_count(self) -> Question:
        person = self.rng.choice(self.people)
        return Question(f"How many things is {person} carrying?", COUNTS[len(self._held(person))])

    def _ask_list(self) -> Question:
        person = self.rng.choice(self.people)
        held = " and ".join(f"the {thing}" for thing in self._held(person))
        return Question(f"What is {person} carrying?", held or "nothing")

    def _ask_who(self) -> Question | None:
        held = [thing for thing in self.objects if self.holder[thing]]
        if not held:
            return None
        thing = self.rng.choice(held)
        return Question(f"Who has the {thing}?", self.holder[thing], self._people_choices(self.holder[thing]))

    def _ask_giver(self) -> Question | None:
        if self.last_gift is None:
            return None
        giver, thing, taker = self.last_gift
        if self.rng.random() < 0.5:
            return Question(f"Who gave the {thing} to {taker}?", giver, self._people_choices(giver))
        return Question(f"Who got the {thing} from {giver}?", taker, self._people_choices(taker))


def _unique_steps(trails: list[tuple[str, list[str]]]) -> list[tuple[str, str, str]]:
    """Return (who, place, place before) for every place that occurs once in its trail and is not the first."""
    return [
        (who, now, before)
        for who, trail in trails
        for before, now in itertools.pairwise(trail)
        if trail.count(now) == 1
    ]


def document(rng: random.Random) -> str:
    """Return a story of 3 to 12 events with questions in between and at the end."""
    scene, sentences = Scene(rng), []
    events = rng.randint(3, 12)
    for number in range(events):
        sentences.append(scene.tell())
        if rng.random() < 0.06:
            sentences.append(aside(rng))
        last = number == events - 1
        if last or rng.random() < 0.25:
            for _ in range(rng.randint(1, 3) if last else 1):
                question = scene.ask(rng.choice(DOCUMENT_QUESTIONS))
                if question:
                    sentences.append(question.answered())
    return " ".join(sentences)


def item(rng: random.Random, kind: str, events: tuple[int, int]) -> tuple[str, Question]:
    """Return a story of `events` (least, most) events and one question of the given kind about its end."""
    while True:
        scene = Scene(rng)
        story = " ".join(scene.tell() for _ in range(rng.randint(*events)))
        question = scene.ask(kind)
        if question and len(question.choices) == 4:
            return story, question
