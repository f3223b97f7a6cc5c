"""Sentencepiece tokenizers: lossless on any text, with special tokens that text cannot spell."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from posttrain_jax.chat.minimax_m2 import SPECIAL_TOKENS
from posttrain_jax.chat.tokenizer import UNKNOWN, Tokenizer
from posttrain_jax.errors import UserError

SPACE = "\u2581"  # how sentencepiece writes a space inside a piece
SIGN = re.compile(r"[-+*/=^%×<>]|, ?(?=\d)|(?<=\d), ?")
OPERATORS = tuple(f"{SPACE}{sign}{SPACE}" for sign in "+-*/×=")
KEPT_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz+-*/=×,.:()\n"


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model whose control pieces are the special tokens.

    Args:
      path: a ``.model`` file. Without byte fallback, characters outside its pieces become its unknown token.
      special_tokens: names of special tokens; those that are no control pieces get the ids behind the model's own.

    Raises:
      FileNotFoundError: no such file.
      UserError: a file that is not a sentencepiece model.
    """

    def __init__(self, path: str | PathLike[str], special_tokens: Sequence[str] = ()):
        import sentencepiece

        self.path, self._further = Path(path), tuple(special_tokens)
        serialized = self.path.read_bytes()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(serialized)
        except RuntimeError as error:
            raise UserError(f"{self.path} is not a sentencepiece model") from error
        pieces = range(self._processor.GetPieceSize())
        self.specials = {self._processor.IdToPiece(i): i for i in pieces if self._processor.IsControl(i)}
        self._bytes = [self._piece_bytes(i) for i in pieces]
        for name in self._further:
            if name not in self.specials:
                self.specials[name] = len(self._bytes)
                self._bytes.append(name.encode())
        byte_ids = {self._bytes[i]: i for i in pieces if self._processor.IsByte(i)}
        self._space_symbol = [byte_ids[bytes([byte])] for byte in SPACE.encode()] if len(byte_ids) == 256 else None
        if self._processor.pad_id() >= 0:
            self.pad_id = self._processor.pad_id()

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self._bytes)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; never a special token."""
        if self._space_symbol is None:
            return self._processor.EncodeAsIds(text)
        ids: list[int] = []
        for count, part in enumerate(text.split(SPACE)):
            ids += self._space_symbol if count else []
            ids += self._processor.EncodeAsIds(part)
        return ids

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """UTF-8 bytes of the ids; see ``Tokenizer.decode_bytes``."""
        return b"".join(self._bytes[token] if token < len(self._bytes) else UNKNOWN for token in tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self._further)

    def _piece_bytes(self, token: int) -> bytes:
        piece = self._processor.IdToPiece(token)
        if self._processor.IsByte(token):
            return bytes([int(piece[3:5], 16)])
        return (piece if self._processor.IsControl(token) else piece.replace(SPACE, " ")).encode()


def separated(lines: Iterable[str], signs: re.Pattern[str] = SIGN) -> Iterator[str]:
    """The lines with a digit around each of the ``signs``, which are arithmetic's, and behind each end.

    A digit is never part of a longer piece, so no piece reaches across. The digits vary because the trainer considers a
    string for a piece only where different characters follow it.
    """
    digits = random.Random(0)
    for line in lines:
        line = signs.sub(lambda sign: f"{digits.randrange(10)}{sign[0]}{digits.randrange(10)}", line)
        yield f"{line}{digits.randrange(10)}"


def train(
    lines: Iterable[str],
    path: str | PathLike[str],
    vocab_size: int = 512,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    signs: re.Pattern[str] = SIGN,
    whole: Sequence[str] = (),
) -> SentencePieceTokenizer:
    """Train a unigram tokenizer and write it to ``path``; the same lines give the same file, bit for bit.

    Pieces may hold several words, so fixed wording is cheap, but every digit is a piece of its own, and so is every
    arithmetic sign: an infix operator with the spaces around it, or the bare sign. The pieces are ``<pad>`` (id 0),
    ``<unk>``, the special tokens, the operators, 256 bytes, the characters met, and what is left of ``vocab_size``.

    Args:
      lines: text samples, each with its newlines.
      path: the ``.model`` file to write; its folder must exist.
      vocab_size: number of tokens, exactly.
      special_tokens: names of the special tokens.
      signs: what no piece reaches across; arithmetic's, unless markup is to be in few pieces.
      whole: texts that are one piece each, wherever they stand.

    Raises:
      UserError: a vocabulary that the samples cannot fill, or too small for their characters.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=separated(lines, signs),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            pad_piece="<pad>",
            control_symbols=list(special_tokens),
            user_defined_symbols=[*OPERATORS, *(text.replace(" ", SPACE) for text in whole)],
            byte_fallback=True,
            character_coverage=1.0,
            required_chars=KEPT_CHARACTERS,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            split_by_whitespace=False,
            treat_whitespace_as_suffix=True,
            split_by_unicode_script=False,
            max_sentencepiece_length=48,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).split("] ")[-1]
        raise UserError(f"cannot train {vocab_size} tokens on these samples: {reason}") from error
    Path(path).write_bytes(model.getvalue())
    return SentencePieceTokenizer(path)
