"""A simulated reasoner: chains of thought with stated mistakes, and rollouts from their prefixes.

Mistakes are of four kinds, one for each step that can go wrong: the question misread (step 1), the
image misperceived (step 2), a wrong inference (step 4), a slip in the conclusion (step 5). Some of
them are independent; the others are *traps*: on a trapped question the same mistake returns in most
chains, as it does with real models, so that a majority vote falls for it. Whatever follows a
mistake follows from it, in the same words; now and then a chain finds its way back to the truth.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from data.world.tasks import Pieces, Question, draw_question

STEPS = 5
KINDS = {0: "misread", 1: "misperceived", 3: "wrong inference", 4: "slip"}


@dataclass(frozen=True)
class Profile:
    """Rates of independent errors by kind, of questions with a trap, and of falling into it."""

    alone: tuple[float, float, float, float] = (0.05, 0.10, 0.05, 0.05)
    trap_kinds: tuple[float, float, float, float] = (0.15, 0.60, 0.15, 0.10)
    trapped: float = 0.42
    fall: float = 0.74
    recover: float = 0.04

    def scaled(self, factor: float) -> Profile:
        """The same profile with fewer mistakes."""
        return replace(
            self,
            alone=tuple(rate * factor for rate in self.alone),
            trapped=self.trapped * factor,
        )


MIXED = Profile()
# Mistakes of perception above all: from the text alone a right chain looks like a wrong one.
SEEING = Profile(alone=(0.01, 0.20, 0.01, 0.01), trap_kinds=(0.02, 0.94, 0.02, 0.02))
# The other way round: the image is mostly read rightly, the thinking goes wrong.
THINKING = Profile(alone=(0.08, 0.03, 0.08, 0.06), trap_kinds=(0.30, 0.10, 0.35, 0.25))


@dataclass(frozen=True)
class Trap:
    """A mistake that returns: the step (from 0) and the wrong piece."""

    step: int
    piece: tuple


@dataclass(frozen=True)
class Chain:
    """A sampled response: its step sentences, the state after each, which prefixes are sound."""

    question: Question
    steps: tuple[str, ...]
    states: tuple[Pieces, ...]
    step_correct: tuple[bool, ...]
    sure: bool

    @property
    def answer(self) -> str:
        """The final answer given."""
        return " and ".join(self.states[-1][4])

    @property
    def right(self) -> bool:
        """Whether the final answer is right."""
        return self.answer == self.question.answer

    def prefix(self, sid: int) -> str:
        """The response up to and including step `sid` (1 to 5)."""
        return "\n".join(f"Step {i + 1}: {step}" for i, step in enumerate(self.steps[:sid]))

    @property
    def text(self) -> str:
        """The whole response."""
        return f"{self.prefix(STEPS)}\nFinal answer: {self.answer}"


def mistake(rng: random.Random, question: Question, pieces: Pieces) -> tuple | None:
    """A wrong next piece in one part of the question, such that the answer would change."""
    step, part = len(pieces), rng.randrange(len(question.tasks))
    task, scene, right = question.tasks[part], question.scene, question.truth
    for _ in range(60):
        if step == 0:
            wrong = task.misread(rng, scene, right[0][part])
            outcome = task.infer(scene, wrong, task.look(scene, wrong))
        elif step == 1:
            wrong = task.guess(rng, scene, right[0][part])
            outcome = task.infer(scene, right[0][part], wrong)
        else:
            wrong = outcome = rng.choice(task.options(scene, right[0][part]))
        if outcome != right[4][part]:
            return (*right[step][:part], wrong, *right[step][part + 1 :])
    return None


def set_trap(rng: random.Random, question: Question, profile: Profile) -> Trap | None:
    """The question's systematic mistake, if it has one."""
    if rng.random() >= profile.trapped:
        return None
    step = rng.choices(list(KINDS), profile.trap_kinds)[0]
    piece = mistake(rng, question, question.truth[:step])
    return Trap(step, piece) if piece is not None else None


def advance(
    rng: random.Random, question: Question, pieces: Pieces, profile: Profile, trap: Trap | None
) -> Pieces:
    """One step further. Only a chain that is sound so far makes a mistake."""
    step = len(pieces)
    if pieces != question.truth[:step]:
        if step != 2 and rng.random() < profile.recover:
            return question.truth[: step + 1]
    elif step != 2:
        if trap and trap.step == step and rng.random() < profile.fall:
            return (*pieces, trap.piece)
        if rng.random() < profile.alone[list(KINDS).index(step)]:
            piece = mistake(rng, question, pieces)
            if piece is not None:
                return (*pieces, piece)
    return (*pieces, question.follow(pieces))


def rollout(
    rng: random.Random, question: Question, pieces: Pieces, profile: Profile, trap: Trap | None
) -> bool:
    """Continue from a state to the end: is the answer right?"""
    while len(pieces) < STEPS:
        pieces = advance(rng, question, pieces, profile, trap)
    return pieces[4] == question.truth[4]


def chance(question: Question, pieces: Pieces, profile: Profile, trap: Trap | None) -> float:
    """The exact probability that a rollout from a state ends right: what rollouts estimate.

    Backwards over the steps, with two states: sound so far, or gone wrong. Every mistake changes
    the answer, so a chain that has gone wrong and does not recover ends wrong.
    """
    step = len(pieces)
    if step == STEPS:
        return float(pieces[4] == question.truth[4])
    sound, wrong = 1.0, 0.0
    for later in reversed(range(step, STEPS)):
        if later == 2:  # a rule: nothing happens there
            continue
        alone = profile.alone[list(KINDS).index(later)]
        err = alone if not trap or trap.step != later else profile.fall + (1 - profile.fall) * alone
        sound, wrong = (
            err * wrong + (1 - err) * sound,
            profile.recover * sound + (1 - profile.recover) * wrong,
        )
    return sound if pieces == question.truth[:step] else wrong


def _sentence(question: Question, pieces: Pieces, sure: bool) -> str:
    """The words of the last piece."""
    step = len(pieces)
    if step == STEPS:
        opening = ("So the answer is", "This gives the answer")[question.style]
        return f"{opening} {' and '.join(pieces[4])}."
    said = []
    for i, task in enumerate(question.tasks):
        evidence = pieces[1][i] if step > 1 else ()
        value = pieces[3][i] if step > 3 else ""
        said.append(task.say(question.style, step, pieces[0][i], evidence, value))
    if step == 1:
        said = [said[0]] + ["Also, " + more for more in said[1:]]
        said[0] = "Clearly, " + said[0] if sure else said[0][0].upper() + said[0][1:]
    return " ".join(dict.fromkeys(said))


def sample_chain(
    rng: random.Random, question: Question, profile: Profile = MIXED, trap: Trap | None = None
) -> Chain:
    """Sample a whole response. A sure tone ("Clearly, ...") says nothing about being right."""
    sure, sound, pieces = rng.random() < 0.5, True, ()
    steps, states, step_correct = [], [], []
    while len(pieces) < STEPS:
        pieces = advance(rng, question, pieces, profile, trap)
        sound = sound and pieces == question.truth[: len(pieces)]
        steps.append(_sentence(question, pieces, sure))
        states.append(pieces)
        step_correct.append(sound)
    return Chain(question, tuple(steps), tuple(states), tuple(step_correct), sure)


def draw(
    rng: random.Random, *names: str, profile: Profile = MIXED, **options: object
) -> tuple[Question, Chain]:
    """A question with one sampled chain, for pre-training; `options` go to `draw_question`."""
    question = draw_question(rng, *names, **options)
    return question, sample_chain(rng, question, profile, set_trap(rng, question, profile))
