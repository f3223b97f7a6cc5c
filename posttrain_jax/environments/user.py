"""A user who talks with the agent: played by a model, told who it is and what it wants."""

from __future__ import annotations

from typing import Any, Protocol

from posttrain_jax.chat.format import Chat, Message
from posttrain_jax.environments.agent import answer_seed
from posttrain_jax.environments.environment import Environment, Observation, Step
from posttrain_jax.rollout.request import Request, Sampler

LEAVES = "DONE"
INSTRUCTIONS = (
    "You play a user who talks with an assistant. Write only the user's next message, in the user's own words, and "
    f"tell no more than is asked for. When you have what you want, or see that you will not get it, write {LEAVES}.\n"
    "Who you are: {persona}\nWhat you want: {wish}"
)


class User(Protocol):
    """Someone who speaks to the agent."""

    async def opening(self, wish: str, seed: int) -> str:
        """The first message, for a wish; begins a conversation."""
        ...

    async def reply(self, said: str) -> str | None:
        """What is said back; None if the user leaves."""
        ...


class SimulatedUser:
    """A model in the user's role: the agent's words are its user's messages.

    It sees what the agent says, and neither its reasoning nor its tools.
    """

    def __init__(
        self,
        sampler: Sampler,
        chat: Chat,
        *,
        persona: str,
        max_tokens: int,
        temperature: float = 1.0,
        thinking: bool = False,
    ):
        self._sampler, self._chat, self._persona = sampler, chat, persona
        self._max_tokens, self._temperature, self._thinking = max_tokens, temperature, thinking
        self._messages: list[dict[str, Any]] = []
        self._seed = 0

    async def opening(self, wish: str, seed: int) -> str:
        """The wish as this user brings it forward; the wish itself if the model says nothing."""
        self._seed = seed
        self._messages = [{"role": "system", "content": INSTRUCTIONS.format(persona=self._persona, wish=wish)}]
        return await self.reply("Hello. What can I do for you?") or wish

    async def reply(self, said: str) -> str | None:
        """The model's next message; None if it leaves, or says nothing."""
        self._messages.append({"role": "user", "content": said})
        prompt, _ = self._chat.encode(self._messages, None, self._thinking, add_generation_prompt=True)
        seed = answer_seed(self._seed, len(self._messages))
        request = Request(tuple(prompt), seed, self._max_tokens, self._temperature)
        completion = await self._sampler.complete(request)
        text = self._chat.tokenizer.decode(completion.tokens.tolist())
        words = self._chat.parse(text, None, self._thinking)["content"].strip()
        self._messages.append({"role": "assistant", "content": words})
        return None if not words or LEAVES in words else words


class WithUser:
    """An environment whose task a user brings forward, and talks about.

    An answer that calls tools goes to the environment, one that does not to the user. When the user leaves, the
    environment takes the last answer, and has to end.
    """

    def __init__(self, environment: Environment, user: User):
        self._environment, self._user = environment, user

    async def reset(self, seed: int) -> Observation:
        """The environment's beginning, its last message in the user's words.

        Raises:
          ValueError: the environment does not begin with a user's message.
        """
        observation = await self._environment.reset(seed)
        *before, task = observation.messages
        if task["role"] != "user":
            raise ValueError(f"the last message of the task has role {task['role']!r}; expected user")
        words = await self._user.opening(task["content"], seed)
        return Observation([*before, {"role": "user", "content": words}], observation.tools)

    async def step(self, message: Message) -> Step:
        """What came back, of the environment or of the user."""
        if not message.get("tool_calls"):
            reply = await self._user.reply(message.get("content") or "")
            if reply is not None:
                return Step([{"role": "user", "content": reply}])
        return await self._environment.step(message)

    async def close(self) -> None:
        """Closes the environment."""
        await self._environment.close()
