"""Other names and descriptions of the worlds' tools and arguments; the first of each is the world's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Verb:
    """A tool in other words.

    Attributes:
      names: what it may be called.
      about: how it may be described.
      reads: it changes nothing, so that it can be called again.
    """

    names: tuple[str, ...]
    about: tuple[str, ...]
    reads: bool = False


def _verb(names: str, *about: str, reads: bool = False) -> Verb:
    return Verb(tuple(names.split()), about, reads)


VERBS: Mapping[str, Mapping[str, Verb]] = {
    "shop": {
        "look": _verb(
            "look check inspect quote get_price query",
            "Price and stock of an item.",
            "Says what an item costs, and how many there are.",
            "Looks an item up.",
            reads=True,
        ),
        "add": _verb("add put_in take pick choose", "Puts items into the basket.", "Adds a count of an item."),
        "remove": _verb("remove put_back drop take_out", "Takes items out of the basket.", "Removes some of an item."),
        "pay": _verb("pay check_out settle finish buy_all", "Buys what is in the basket.", "Pays, and ends the visit."),
    },
    "calendar": {
        "show": _verb(
            "show list_day view agenda get_day",
            "Taken hours of a day.",
            "Lists the hours that are taken.",
            "Who has which hour of a day.",
            reads=True,
        ),
        "book": _verb("book reserve set_slot plan put", "Books an hour, 8 to 17.", "Gives somebody an hour, 8 to 17."),
        "cancel": _verb("cancel free clear drop_slot release", "Frees an hour.", "Removes whoever has an hour."),
    },
    "files": {
        "files": _verb(
            "files list ls dir contents",
            "Files of a folder, or folders of /.",
            "Lists a folder; / lists all folders.",
            reads=True,
        ),
        "read": _verb("read open cat show_file get_text", "What a file says.", "Reads a file.", reads=True),
        "move": _verb("move mv put_into relocate", "Moves a file.", "Moves a file into a folder."),
        "rename": _verb("rename set_name call_it relabel", "Gives a file a name.", "Renames a file where it is."),
        "delete": _verb("delete rm erase discard", "Deletes a file.", "Removes a file for good."),
    },
    "database": {
        "find": _verb(
            "find query select where search", "Rows with a value.", "Rows whose column has a value.", reads=True
        ),
        "rows": _verb("rows all dump scan", "All rows.", "Every row of a table.", reads=True),
        "set": _verb("set update write put_cell change", "Sets a cell.", "Writes a value into a row's column."),
    },
    "bank": {
        "balance": _verb(
            "balance amount_of level check how_much", "What an owner has.", "Says how much is there.", reads=True
        ),
        "send": _verb("send transfer move_amount shift pass", "Sends an amount.", "Moves an amount to another."),
        "owners": _verb("owners list_all names who", "All owners.", "Lists everyone.", reads=True),
    },
}
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "item": ("item", "product", "article", "what", "id"),
    "count": ("count", "number", "quantity", "n"),
    "day": ("day", "date", "weekday", "on"),
    "hour": ("hour", "slot", "time", "at"),
    "folder": ("folder", "dir", "place", "into"),
    "path": ("path", "file", "source_path", "entry"),
    "name": ("name", "label", "title", "who"),
    "table": ("table", "relation", "sheet"),
    "column": ("column", "field", "key"),
    "value": ("value", "val", "content"),
    "row": ("row", "line", "record_id"),
    "owner": ("owner", "account", "holder", "of"),
    "source": ("source", "from_account", "giver", "origin"),
    "target": ("target", "to_account", "receiver", "destination"),
    "amount": ("amount", "sum", "units", "quantity"),
}
STYLES = ("snake", "camel", "kebab", "prefixed", "pascal")


def styled(name: str, style: str, prefix: str) -> str:
    """A name in a programmer's style.

    >>> styled("get_price", "camel", "shop")
    'getPrice'
    """
    words = name.split("_")
    if style == "camel":
        return words[0] + "".join(word.title() for word in words[1:])
    if style == "kebab":
        return "-".join(words)
    if style == "pascal":
        return "".join(word.title() for word in words)
    return f"{prefix}_{name}" if style == "prefixed" else name
