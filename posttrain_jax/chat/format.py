"""What a chat is: one family's format joined to a tokenizer.

A format writes a conversation as segments. ``render`` joins their text and ``encode`` tokenises them one by one, so the
two cannot drift apart, and only a segment that the format itself marks as special becomes a special token: text typed
by a user, returned by a tool or written by a model never does.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from posttrain_jax.chat.messages import ChatError

if TYPE_CHECKING:
    from posttrain_jax.chat.tokenizer import Tokenizer

Message = Mapping[str, Any]


class Segment(NamedTuple):
    """A stretch of a rendered conversation.

    Attributes:
      text: its characters; for a special segment, the name of exactly one special token.
      special: whether the text is one special token rather than ordinary text.
      trained: whether the model has to produce it.
    """

    text: str
    special: bool = False
    trained: bool = False


class Format(Protocol):
    """How one family writes a conversation down and reads an answer back."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Names of the tokens that structure a conversation."""
        ...

    @property
    def spelled_tokens(self) -> tuple[str, ...]:
        """Those of them that are ordinary text in the tokenizers that lack them."""
        ...

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Names of the tokens that end an assistant turn."""
        ...

    @property
    def call_mark(self) -> str:
        """The text that opens an answer's calls of tools."""
        ...

    def segments(
        self, messages: Sequence[Message], tools: Sequence[Message], thinking: bool, add_generation_prompt: bool
    ) -> Iterable[Segment]:
        """The conversation from its first character to its last, as the released template writes it."""
        ...

    def training(self, messages: Sequence[Message], tools: Sequence[Message], thinking: bool) -> Iterable[Segment]:
        """The conversation as it is trained on: each of the `learnt` answers as the model has to write it behind its
        generation prompt, to its stop token; of the others nothing is trained."""
        ...

    def learnt(self, messages: Sequence[Message], thinking: bool) -> set[int]:
        """Indices of the answers that ``training`` shows as they were written, the last message always among them.

        An earlier one is not where the format has taken out its reasoning, or the block that it stood in: no generation
        prompt opens an answer of that form. It is context; `Chat.beginnings` tells where it is learnt.
        """
        ...

    def parse(self, text: str, tools: Sequence[Message], thinking: bool) -> dict[str, Any]:
        """The assistant message that ``text``, written after the generation prompt, stands for."""
        ...


class Chat:
    """Messages to text or tokens and back, for one family.

    Messages are OpenAI-style dicts: ``role`` (system, user, assistant, tool), ``content`` (a string, or a list of
    ``{"type": "text", "text": ...}``), and for the assistant ``reasoning_content`` and ``tool_calls``. A record that
    breaks these rules raises ``ChatError``, which names the message by its index.
    """

    def __init__(self, format: Format, tokenizer: Tokenizer | None = None):
        self.format = format
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer given, or the small one that ships with the project, loaded on first use."""
        if self._tokenizer is None:
            from posttrain_jax.chat import tokenizer

            self._tokenizer = tokenizer.load("tiny", self.format.special_tokens)
        return self._tokenizer

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that end an assistant turn."""
        return tuple(self.tokenizer.special(name) for name in self.format.stop_tokens)

    def segments(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        thinking: bool = True,
        add_generation_prompt: bool = False,
    ) -> list[Segment]:
        """The conversation as segments, adjacent ordinary text of one kind joined."""
        return joined(self.format.segments(messages, tools or (), thinking, add_generation_prompt))

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        thinking: bool = True,
        add_generation_prompt: bool = False,
    ) -> str:
        """The conversation as the family's text.

        Args:
          messages: the conversation; see the class.
          tools: JSON-schema functions the model may call, bare or as ``{"type": "function", "function": ...}``.
          thinking: whether the model reasons before it answers; what ``False`` means is the family's decision.
          add_generation_prompt: end with the opening of an assistant turn.

        Raises:
          ChatError: a message, tool or tool call that the family cannot write.
        """
        return "".join(segment.text for segment in self.segments(messages, tools, thinking, add_generation_prompt))

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        thinking: bool = True,
        add_generation_prompt: bool = False,
    ) -> tuple[list[int], list[int]]:
        """The conversation as tokens, and 1 for each token that the assistant has to produce, else 0.

        Arguments and errors are those of :meth:`render`. A conversation that ends with the assistant's answer shows
        that answer as the model has to write it after its prompt, reasoning and stop token included, even where the
        family's template leaves them out afterwards; otherwise ``tokenizer.decode(tokens)`` is the rendering.
        Tokens never straddle the end of a generation prompt: the tokens of a prompt begin those of its continuation.
        An answer that brings no reasoning is one that thought nothing: where the format has a block for thoughts it is
        empty, and with ``thinking`` the model has to write that. Answers of another form are not trained: `beginnings`.
        """
        if add_generation_prompt:
            segments = self.format.segments(messages, tools or (), thinking, True)
        else:
            segments = self.format.training(messages, tools or (), thinking)
        return self._tokenized(segments)

    def beginnings(self, messages: Sequence[Message], thinking: bool = True) -> list[int]:
        """Lengths of the beginnings of a conversation that together, each encoded by itself, train all its answers.

        One is enough where the format keeps every answer as it was written. Where it takes reasoning out of earlier
        answers, those are learnt in a beginning that ends with them, behind the very prompt that they followed. An
        answer that is not altered may be in several.
        """
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        lengths = []
        while answers:
            lengths.append(answers[-1] + 1)
            learnt = self.format.learnt(messages[: lengths[-1]], thinking)
            answers = [index for index in answers if index not in learnt]
        return lengths[::-1]

    @functools.cached_property
    def thinks(self) -> bool:
        """Whether the format writes reasoning at all; Kimi-K2-Instruct's does not."""
        thought = {"role": "assistant", "reasoning_content": "\ue000", "content": ""}
        return any("\ue000" in segment.text for segment in self.format.training([thought], (), True))

    def continuation(
        self,
        messages: Sequence[Message],
        sampled: Sequence[int],
        tools: Sequence[Message] | None = None,
        thinking: bool = True,
    ) -> list[int]:
        """The tokens between a sampled answer and the next one: its end, what came back, the generation prompt.

        ``prompt + sampled + continuation`` is the next prompt: what was sampled stays as it was drawn, reasoning
        included, and is what :meth:`encode` gives for ``messages`` where the format keeps all thinking.

        Args:
          messages: the conversation; behind its last answer, the tool results or user messages that came back.
          sampled: tokens of that answer. A stop token at their end is not repeated; where they were cut off, or
            stopped with the token of another role, the right one follows.
          tools, thinking: as given when the prompt was encoded.

        Raises:
          ChatError: nothing came back, or something that is neither a tool's result nor a user's message.
        """
        last = max((i for i, message in enumerate(messages) if message.get("role") == "assistant"), default=-1)
        news = [message.get("role") for message in messages[last + 1 :]]
        if last < 0 or not news or not set(news) <= {"tool", "user"}:
            raise ChatError(f"roles after the last answer are {news}; expected one or more of tool and user")
        segments = list(self.format.segments(messages, tools or (), thinking, True))
        end = max(index for index, segment in enumerate(segments) if segment.trained)  # the answer's stop token
        stopped = list(sampled[-1:]) == [self.tokenizer.special(segments[end].text)]
        return self._tokenized(segments[end + stopped :])[0]

    def thinking_marks(self) -> tuple[str, str, list[int]]:
        """What opens an answer's thinking, what ends it, and the tokens between the last thought and the answer.

        Raises:
          ChatError: the format writes no thinking.
        """
        thought, answer = "\ue000", "\ue001"  # private characters: no template writes them
        message = {"role": "assistant", "reasoning_content": thought, "content": answer}
        segments = list(self.format.training([{"role": "user", "content": "?"}, message], (), True))
        places = [i for mark in (thought, answer) for i, segment in enumerate(segments) if mark in segment.text]
        if len(places) != 2:
            raise ChatError("this format writes no thinking, so it has no budget: leave thinking off")
        first, last = places
        head = segments[first]._replace(text=segments[first].text.partition(thought)[2])
        tail = segments[last]._replace(text=segments[last].text.partition(answer)[0])
        closing = [head, *segments[first + 1 : last], tail]
        opening = [segment.text for segment in segments[:first] if segment.special][-1]
        ending = next(segment.text for segment in closing if segment.special)
        return opening, ending, self._tokenized(closing)[0]

    def _tokenized(self, segments: Iterable[Segment]) -> tuple[list[int], list[int]]:
        tokens: list[int] = []
        loss_mask: list[int] = []
        for segment in joined(map(self._spelled, segments)):
            if segment.special:
                ids = [self.tokenizer.special(segment.text)]
            else:
                ids = self.tokenizer.encode(segment.text)
            tokens += ids
            loss_mask += [int(segment.trained)] * len(ids)
        return tokens, loss_mask

    def _spelled(self, segment: Segment) -> Segment:
        """The segment as the tokenizer takes it: some of the family's markup may be ordinary text to it."""
        spelled = segment.text in self.format.spelled_tokens and segment.text not in self.tokenizer.specials
        return segment._replace(special=segment.special and not spelled)

    def parse(self, text: str, tools: Sequence[Message] | None = None, thinking: bool = True) -> dict[str, Any]:
        """The assistant message written after a generation prompt, with or without its end token.

        Never raises on any text, and loses none of it: what is malformed stays in ``content``.

        Args:
          text: what follows the generation prompt.
          tools: the functions offered; their JSON schemas give the arguments of a call their types.
          thinking: as given when the prompt was rendered.

        Returns:
          ``role``, ``content``, ``reasoning_content``; where the model called tools, ``tool_calls`` with each
          ``function.arguments`` a dict; where something is malformed, ``errors``, a line for each.
        """
        return self.format.parse(text, tools or (), thinking)


def untrained(segments: Iterable[Segment]) -> Iterator[Segment]:
    """The segments as context."""
    return (segment._replace(trained=False) for segment in segments)


def joined(segments: Iterable[Segment]) -> list[Segment]:
    """The segments, adjacent ordinary text of one kind joined."""
    runs: list[Segment] = []
    for (special, trained), run in itertools.groupby(segments, key=lambda segment: segment[1:]):
        if special:
            runs.extend(run)
        elif text := "".join(segment.text for segment in run):
            runs.append(Segment(text, special, trained))
    return runs
