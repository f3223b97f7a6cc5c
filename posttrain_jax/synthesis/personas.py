"""Users as data: how they bring a wish forward; and the user who speaks by script, without a model."""

from __future__ import annotations

import dataclasses

from posttrain_jax.environments.expert import sentences

ASKS_BACK = "What can I do for you?"


@dataclasses.dataclass(frozen=True)
class Persona:
    """A way to talk.

    Attributes:
      name: of the persona.
      about: for a model that plays it.
      first: the first wish in its words, ``{wish}`` in it.
      next: each later wish.
      opening: what it says before it comes to the point; nothing if it does so at once.
      piecewise: one wish at a time.
    """

    name: str
    about: str
    first: str = "{wish}"
    next: str = "{wish}"
    opening: str = ""
    piecewise: bool = False


PERSONAS = (
    Persona("plain", "You say what you want in as few words as it takes."),
    Persona("polite", "You are polite and say please.", "Good day. {wish} Thank you!"),
    Persona("hurried", "You have no time and say so.", "quick, no time: {wish}"),
    Persona("chatty", "You like to talk.", "Hi there! Lovely weather, isn't it? Anyway: {wish} That would be great."),
    Persona("vague", "You come to the point only when asked.", opening="Hello, I need some help."),
    Persona("formal", "You write like an office.", "To whom it may concern. {wish} Kind regards"),
    Persona("stepwise", "You bring one wish at a time.", "First this. {wish}", "Good. Next: {wish}", piecewise=True),
    Persona(
        "hesitant", "You are unsure of yourself.", "Well, I think: {wish}", "And, if I may: {wish}", "Hm, hello?", True
    ),
    Persona("blunt", "You give orders.", "Do this. {wish} Now."),
    Persona("grateful", "You thank for every step.", "Could you? {wish}", "Thanks a lot! {wish}", piecewise=True),
)


def script(persona: Persona, task: str) -> list[tuple[str, str]]:
    """What a persona says, one message after another, each with the wish in it; an opening has none."""
    parts = sentences(task) if persona.piecewise else [task]
    said = [(persona.opening, "")] if persona.opening else []
    for number, part in enumerate(parts):
        said.append(((persona.next if number else persona.first).format(wish=part), part))
    return said


class ScriptedUser:
    """A `User` that says its script and leaves."""

    def __init__(self, persona: Persona):
        self._persona = persona
        self._left: list[str] = []

    async def opening(self, wish: str, seed: int) -> str:
        """The script's first words."""
        self._left = [words for words, _ in script(self._persona, wish)]
        return self._left.pop(0)

    async def reply(self, said: str) -> str | None:
        """The next words; None when all is said."""
        return self._left.pop(0) if self._left else None
