"""Trains the tokenizers of the small scales on demonstrations.

python launch/train_tokenizer.py                                                              # tiny
python launch/train_tokenizer.py --worlds=shop,calendar,files,database,bank --vocab_size=624 \
    --output=posttrain_jax/chat/assets/tools.model                                            # tools
python launch/train_tokenizer.py --declared=register --families=glm_4_6,kimi_k2 --vocab_size=672 \
    --output=posttrain_jax/chat/assets/register.model                                         # register
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags

from posttrain_jax import chat
from posttrain_jax.chat.sentence_pieces import train
from posttrain_jax.chat.tokenizer import ASSETS
from posttrain_jax.data import sources, tasks
from posttrain_jax.environments import worlds
from posttrain_jax.errors import UserError
from posttrain_jax.run.recipe import Tasks

FLAGS = flags.FLAGS
flags.DEFINE_string("output", str(ASSETS / "tiny.model"), "Model file to write.")
flags.DEFINE_integer("vocab_size", 640, "Number of tokens.", lower_bound=300)
flags.DEFINE_list("worlds", [], "Worlds that are demonstrated; empty means the tasks of one turn.")
flags.DEFINE_list("declared", [], "Worlds whose tools are declared in few pieces, beside the tasks of one turn.")
flags.DEFINE_list("families", ["minimax_m2"], "Chat formats in which they are declared.")
flags.DEFINE_integer("problems_per_task", 240, "Demonstrations of each in the corpus.", lower_bound=1)

LEVELS = 4

PHRASE = re.compile(r"(?s).{2,44}\s|.{2,44}")
LINE = re.compile(r"[^\n]+\n")
COMMA = re.compile(r", ?(?=\d)|(?<=\d), ?")
VALUE = "\ue000"  # a private character: no template writes it
FRAME = re.compile(rf"[^{VALUE}\d]{{4,48}}")
TAGS_OR_WORD = re.compile(r"(?:\s*</?[a-z]+[^<>]*>\s*)+|\w+|\W")


def corpus(problems_per_task: int) -> Iterator[str]:
    """Every stretch of ordinary text in the rendered demonstrations, careful and careless, in order."""
    family = chat.for_family("minimax_m2")
    source = sources.open("tasks", max_level=LEVELS - 1, system=Tasks().system, seed=0, careful_share=0.5)
    for index in range(problems_per_task * len(tasks.TASKS)):
        segments = family.segments(source[index]["messages"])
        yield from (segment.text for segment in segments if not segment.special)


def episodes(names: Sequence[str], problems_per_task: int) -> tuple[list[str], list[str]]:
    """The phrases in which worlds declare their tools, and what is said in them, in runs of tags and in single words.

    A phrase is to be one piece, and so is a line of the example of a call that comes with them. A value is the same
    piece where it is asked for, in a call, and in a result.
    """
    family, phrases, said = chat.for_family("minimax_m2"), dict[str, None](), []
    for name, level, index in itertools.product(names, range(LEVELS), range(problems_per_task)):
        record = worlds.demonstration(name, level, index, 0)
        ordinary = [s.text for s in family.segments(record["messages"], record["tools"]) if not s.special]
        first = next(i for i, text in enumerate(ordinary) if text.startswith("user\n"))
        for text in ordinary[:first]:
            phrases |= dict.fromkeys((LINE if "<invoke" in text else PHRASE).findall(text))
        said += [piece for text in ordinary[first:] for piece in TAGS_OR_WORD.findall(text)]
    return list(phrases), said


def declarations(names: Sequence[str], families: Sequence[str]) -> list[str]:
    """The phrases in which worlds declare their tools, and what stands around the values of a call and its result."""
    phrases: dict[str, None] = {}
    for name, family in itertools.product(names, families):
        chat_format, tools = chat.for_family(family), worlds.demonstration(name, 0, 0, 0)["tools"]
        system = [{"role": "system", "content": VALUE}]
        for text in (segment.text for segment in chat_format.segments(system, tools) if not segment.special):
            phrases |= dict.fromkeys(PHRASE.findall(text.replace(VALUE, "")))
        for tool in (tool.get("function", tool) for tool in tools):
            arguments = dict.fromkeys(tool["parameters"]["properties"], VALUE)
            call = {"type": "function", "function": {"name": tool["name"], "arguments": arguments}}
            turns = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": VALUE}]
            written = chat_format.segments([*system, {"role": "user", "content": VALUE}, *turns])
            phrases |= dict.fromkeys(frame for s in written if not s.special for frame in FRAME.findall(s.text))
    return list(phrases)


def main(_: list[str]) -> None:
    try:
        if FLAGS.worlds:
            phrases, said = episodes(FLAGS.worlds, FLAGS.problems_per_task)
            trained = train(said, FLAGS.output, FLAGS.vocab_size, signs=COMMA, whole=phrases)
        else:
            phrases = declarations(FLAGS.declared, FLAGS.families)
            trained = train(corpus(FLAGS.problems_per_task), FLAGS.output, FLAGS.vocab_size, whole=phrases)
    except (UserError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    size = Path(FLAGS.output).stat().st_size
    print(f"{FLAGS.output}: {trained.size} tokens, {size} bytes")


if __name__ == "__main__":
    app.run(main)
