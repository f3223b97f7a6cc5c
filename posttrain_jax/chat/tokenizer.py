"""What a tokenizer is, and where one comes from: ``load("tiny")``, a file, or the folder of a released model."""

from __future__ import annotations

import abc
import difflib
import functools
import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from posttrain_jax.errors import UserError

ASSETS = Path(__file__).parent / "assets"
FILES = ("tokenizer.json", "tiktoken.model", "tokenizer.model")
UNKNOWN = "\ufffd".encode()
PADDING = ("<pad>", "[PAD]", "<|endoftext|>", "]!p~[")


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    Ordinary text is encoded without special tokens, whatever it says, and ``decode(encode(text)) == text``.

    Attributes:
      path: the file it was read from.
      specials: id of each special token by name.
    """

    path: Path
    specials: dict[str, int]

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """One more than the largest id."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; never a special token."""

    @abc.abstractmethod
    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """UTF-8 bytes of the ids, special tokens by name; a character may be split between one call and the next.

        An id that stands for nothing (released models have more rows than tokens) becomes U+FFFD.
        """

    @functools.cached_property
    def pad_id(self) -> int:
        """Id of the token that fills unused places of a batch."""
        return next((self.specials[name] for name in PADDING if name in self.specials), 0)

    def special(self, name: str) -> int:
        """Id of a special token.

        Raises:
          UserError: there is none of that name; names the nearest.
        """
        if name not in self.specials:
            near = difflib.get_close_matches(name, self.specials, n=1, cutoff=0.0)
            raise UserError(
                f"{self.path} has no special token {name!r}; "
                + (f"the nearest is {near[0]!r}" if near else "it has none at all")
            )
        return self.specials[name]

    def encode_with_specials(self, text: str) -> list[int]:
        """Ids of rendered text, where the names of special tokens stand for them. Never call it on foreign text."""
        ids: list[int] = []
        for part in self._special_pattern.split(text):
            ids += [self.specials[part]] if part in self.specials else self.encode(part)
        return ids

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        names = sorted(map(re.escape, self.specials), key=len, reverse=True)
        return re.compile(f"({'|'.join(names)})" if names else r"(\Z)")

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of the ids, special tokens by name; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode(errors="replace")


def shipped() -> list[str]:
    """Names of the tokenizers that come with the project."""
    return sorted(file.stem for file in ASSETS.glob("*.model"))


@functools.cache
def load(name: str | PathLike[str] = "tiny", special_tokens: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer shipped under a name, or the one at a path.

    Args:
      name: one of `shipped`; or a ``tokenizer.json``, a ``tiktoken.model`` or a sentencepiece ``.model``; or a folder
        with one.
      special_tokens: a tuple of names; those that a sentencepiece model lacks get the ids behind its own.

    Raises:
      FileNotFoundError: none of these exists; the message lists the shipped names.
      UserError: a file that is not a tokenizer.
    """
    from posttrain_jax.chat.byte_pairs import HuggingFaceTokenizer, TiktokenTokenizer
    from posttrain_jax.chat.sentence_pieces import SentencePieceTokenizer

    path = ASSETS / f"{name}.model" if name in shipped() else Path(name)
    if path.is_dir():
        found = [path / file for file in FILES if (path / file).is_file()]
        if not found:
            raise FileNotFoundError(f"no tokenizer in {path}: none of {', '.join(FILES)}")
        path = found[0]
    if not path.is_file():
        names = ", ".join(shipped())
        raise FileNotFoundError(f"no tokenizer {str(name)!r}: neither a path nor one of those shipped ({names})")
    if path.suffix == ".json":
        return HuggingFaceTokenizer(path)
    if "tiktoken" in path.name:
        return TiktokenTokenizer(path)
    return SentencePieceTokenizer(path, special_tokens)


def released_settings(path: Path) -> Mapping[str, object]:
    """The ``tokenizer_config.json`` beside a tokenizer's file; empty where there is none.

    Raises:
      UserError: it is not JSON.
    """
    file = path.with_name("tokenizer_config.json")
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
