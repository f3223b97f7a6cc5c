"""Records to packed batches, in an order that a small cursor can pick up again.

Grain shuffles, repeats and reads ahead; the cursor is a position in that one global order, so it means the same for
any number of processes, and what was read ahead but not handed out is simply read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from posttrain_jax.data.packing import Batch, FirstFit, Place, lay
from posttrain_jax.data.sources import Source
from posttrain_jax.errors import UserError

if TYPE_CHECKING:
    from posttrain_jax.chat.format import Chat

READ_AHEAD = 256  # samples tokenised in the background
LOOK_AHEAD = 8  # samples set aside for the next batch before a batch counts as full
HOPELESS = 10_000  # samples skipped in a row before the rest is given up


class Kind(NamedTuple):
    """What records are, and what becomes of them.

    Attributes:
      encode: the chat and a record to its content, such as tokens and a loss mask.
      size: positions that a content takes in a row.
      lay: contents in their places, to the arrays of a batch.
      most: contents that a row of so many positions takes at most, or None.
    """

    encode: Callable[[Chat, Mapping[str, Any]], Any]
    size: Callable[[Any], int]
    lay: Callable[..., Batch]
    most: Callable[[int], int | None]


class Sample(NamedTuple):
    """A record's number, its content, and the positions that this takes."""

    record: int
    content: Any
    size: int


def _lay(placed: Sequence[tuple[Place, tuple[list[int], list[int]]]], *, rows: int, length: int) -> Batch:
    return lay([(place, *content) for place, content in placed], rows=rows, length=length)


def _encode(chat: Chat, record: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    switches = {"thinking": record["thinking"]} if "thinking" in record else {}
    return chat.encode(record["messages"], record.get("tools"), **switches)


CONVERSATIONS = Kind(
    _encode,
    lambda content: len(content[0]),
    _lay,
    lambda length: None,
)


def batches(
    source: Source,
    chat: Chat,
    *,
    rows: int,
    length: int,
    seed: int,
    on_too_long: str,
    state: Mapping[str, Any] | None = None,
    kind: Kind = CONVERSATIONS,
    section: str = "sft",
) -> Batches:
    """Endless batches of a source's records, reshuffled every epoch, packed first-fit.

    Args:
      source: random access to records, ``{"messages": [...]}`` unless ``kind`` says otherwise; its
        ``where(index)``, if any, names one in errors.
      chat: turns messages into tokens and a loss mask.
      rows: rows in a batch.
      length: tokens in a row. A sample is never cut: one that is longer is an error or skipped.
      seed: of the order.
      on_too_long: ``"error"`` or ``"skip"``.
      state: an earlier ``Batches.state()``, to go on from there.
      kind: what the records are.
      section: of the recipe's settings, for errors.

    Raises:
      UserError: an empty source, or a state that belongs to another.
    """
    return Batches(source, chat, rows, length, seed, on_too_long, state, kind, section)


class Batches(Iterator[Batch]):
    """Iterator over batches; see `batches`, and `packing.lay` for what one holds.

    Attributes:
      skipped: samples left out so far because they were too long.
    """

    def __init__(
        self,
        source: Source,
        chat: Chat,
        rows: int,
        length: int,
        seed: int,
        on_too_long: str,
        state: Mapping[str, Any] | None,
        kind: Kind,
        section: str,
    ):
        import grain

        if on_too_long not in ("error", "skip"):
            raise ValueError(f"on_too_long={on_too_long!r}; expected 'error' or 'skip'")
        if not len(source):
            raise UserError("the data has no records")
        self._where = getattr(source, "where", "record {}".format)
        self._kind, self._section = kind, section
        self._records, self._rows, self._length, self._on_too_long = len(source), rows, length, on_too_long
        state = state or {"next": 0, "waiting": [], "skipped": 0, "records": self._records}
        if state["records"] != self._records:
            raise UserError(
                f"the data has {self._records} records, but had {state['records']} when this run began: "
                "put the old data back, or begin a new run"
            )

        def tokenise(index: int, record: Mapping[str, Any]) -> Sample:
            index %= self._records
            try:
                content = kind.encode(chat, record)
            except UserError as error:
                raise UserError(f"{self._where(index)}: {error}") from error
            return Sample(index, content, kind.size(content))

        samples = grain.MapDataset.source(source).map_with_index(tokenise).shuffle(seed % 2**32).repeat()
        self._next: int = state["next"]
        self._waiting = [(position, samples[position]) for position in state["waiting"]]
        self.skipped: int = state["skipped"]
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)
        self._fresh = iter(samples[self._next :].to_iter_dataset(options))

    def state(self) -> dict[str, Any]:
        """The cursor behind the last batch handed out: JSON-able, and the same for any number of processes.

        ``next`` is the position of the first sample not looked at yet, ``waiting`` are positions before it whose
        samples did not fit and begin the next batch.
        """
        waiting = [position for position, _ in self._waiting]
        return {"next": self._next, "waiting": waiting, "skipped": self.skipped, "records": self._records}

    def __next__(self) -> Batch:
        fit = FirstFit(self._length, self._rows, self._kind.most(self._length))
        placed, waiting = [], []
        for position, sample in self._candidates():
            place = fit.place(sample.size)
            if place is not None:
                placed.append((place, sample.content))
                continue
            waiting.append((position, sample))
            if len(waiting) == LOOK_AHEAD:
                break
        self._waiting = waiting
        return self._kind.lay(placed, rows=self._rows, length=self._length)

    def _candidates(self) -> Iterator[tuple[int, Sample]]:
        """Samples in the order they are tried: first those that wait, of which the first always fits an empty row."""
        yield from self._waiting
        in_a_row = 0
        while True:
            sample = next(self._fresh)
            self._next += 1
            if sample.size <= self._length:
                in_a_row = 0
                yield self._next - 1, sample
                continue
            self._refuse(sample)
            in_a_row += 1
            if in_a_row == min(2 * self._records, HOPELESS):  # two epochs' worth holds every record at least once
                section = self._section
                raise UserError(
                    f"{in_a_row} samples in a row are longer than {section}.length={self._length} and were skipped; "
                    f"the last, {self._where(sample.record)}, has {sample.size} tokens: set {section}.length higher"
                )

    def _refuse(self, sample: Sample) -> None:
        """Counts a sample that is too long, or raises."""
        if self._on_too_long == "error":
            raise UserError(
                f"{self._where(sample.record)} has {sample.size} tokens, more than {self._section}.length="
                f"{self._length}: set {self._section}.length to {sample.size} or more, or {self._section}.on_too_long"
                " to 'skip'"
            )
        self.skipped += 1
