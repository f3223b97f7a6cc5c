"""Domains, and the applications in them: other words for a world's things, which leave its rules as they are.

Kimi K2 evolves tools from categories over applications (arXiv 2507.20534, section 3.1.1). Here an application is a
world in other words: its pools name the things, its words the actions. All are data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from posttrain_jax.environments import appointments, database, folders, shop

PEOPLE = (
    "Ada Amir Anya Bea Carl Chen Dora Emil Fay Femi Greta Hana Hugo Iris Ivan Joan Kaia Kofi Lars Lena Lin Luis Maja "
    "Mona Nils Noor Omar Olga Paul Priya Quin Rosa Ravi Sara Sven Tara Theo Uma Vera Wei Xena Yara Yusuf Zoe"
).split()
TOWNS = (
    "paris tokyo cairo quito delhi seoul milan turin lyon ghent basel porto malmo turku tartu split bergen leeds"
).split()
SLOTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "shop": {"items": shop.ITEMS},
    "calendar": {"names": appointments.NAMES},
    "files": {
        "stems": folders.STEMS,
        "words": folders.WORDS,
        "folders": ("docs", "pics", "work", "tax", "home", "fun", "old", "tmp"),
        "kinds": folders.KINDS,
    },
    "database": {"names": appointments.NAMES, "cities": database.CITIES, "teams": database.TEAMS},
    "bank": {"names": appointments.NAMES},
}
"""The words of a world that a pool of an application replaces."""


@dataclasses.dataclass(frozen=True)
class Application:
    """A world in other words.

    Attributes:
      category: the domain that it belongs to.
      name: what a system prompt calls it.
      world: whose rules it has.
      pools: words to draw from, by slot; a slot without a pool keeps its words.
      words: fixed replacements.
    """

    category: str
    name: str
    world: str
    pools: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _shop(category: str, name: str, items: str, **words: str) -> Application:
    return Application(category, name, "shop", {"items": items.split()}, words)


def _calendar(category: str, name: str, names: str | Sequence[str], **words: str) -> Application:
    return Application(category, name, "calendar", {"names": names.split() if isinstance(names, str) else names}, words)


def _files(category: str, name: str, stems: str, homes: str, kinds: str) -> Application:
    pools = {"stems": stems.split(), "folders": homes.split(), "kinds": kinds.split()}
    return Application(category, name, "files", pools)


def _table(category: str, name: str, pools: Mapping[str, Sequence[str]], words: str) -> Application:
    keys = ("staff", "teams", "team", "boss", "pay", "city")
    return Application(category, name, "database", pools, dict(zip(keys, words.split(), strict=True)))


def _bank(category: str, name: str, names: str | Sequence[str], **words: str) -> Application:
    return Application(category, name, "bank", {"names": names.split() if isinstance(names, str) else names}, words)


SHIPS = "Argo Orca Wave Gull Kite Star Nova Dawn Rook Finn Tern Mist Reef Opal".split()
HOSTS = "atlas comet delta ember flint grape helix indigo jade karma lotus maple nebula onyx".split()
APPLICATIONS: tuple[Application, ...] = (
    Application("retail", "a corner shop", "shop"),
    _shop("retail", "a grocery", "rice milk bread salt plum leek corn bean lime kale pear soap dill nuts"),
    _shop("retail", "a hardware store", "bolt nail saw drill tape glue hose wire clamp hinge rope paint file tarp"),
    _shop("retail", "a book shop", "novel atlas comic diary essay bible guide poem primer memoir almanac reader"),
    _shop("health", "a pharmacy", "balm drops gauze mask syrup tablet tonic cream swab iodine zinc vial", Buy="Order"),
    _shop("food", "a canteen kitchen", "soup stew salad bun curry pasta tofu cake pie juice tart ham", basket="tray"),
    _shop("finance", "a metals broker", "gold silver copper nickel lead tin cobalt lithium iron steel platinum chrome"),
    _shop("finance", "a stock desk", "ACME BOLT CRUX DYNE ECHO FLUX GRID HALO IONX JOLT KILN LYRA", coins="dollars"),
    _shop("games", "a wizard's market", "wand rune orb cloak scroll amulet potion staff crystal dagger ring torch"),
    _shop("industry", "a parts depot", "gear valve pump belt relay motor sensor piston gasket spring rotor bracket"),
    Application("office", "a calendar", "calendar"),
    _calendar("office", "a meeting room", "Sales Legal Audit Board Design Payroll Press Research Support Brand Ethics"),
    _calendar("office", "an interview desk", PEOPLE, Book="Schedule"),
    _calendar("health", "a clinic", PEOPLE, Cancel="Drop"),
    _calendar("health", "a scanner room", "Spine Knee Skull Hip Lung Heart Wrist Ankle Jaw Elbow Neck", Book="Reserve"),
    _calendar("transport", "a car workshop", "Golf Polo Fiesta Corsa Panda Clio Yaris Civic Astra Micra Swift"),
    _calendar("transport", "a loading dock", SHIPS, Book="Reserve", Move="Shift"),
    _calendar("sport", "a tennis court", PEOPLE, Book="Reserve"),
    _calendar("science", "a telescope", "Mars Venus Saturn Pluto Vega Rigel Titan Ceres Deneb Io", Book="Schedule"),
    _calendar("media", "a recording studio", "Abba Muse Blur Pulp Toto Rush Kiss Doors Cream Byrds Eagles"),
    Application("software", "a file store", "files"),
    _files(
        "software",
        "a code repository",
        "main parser lexer server client router schema cache logger auth worker queue index",
        "src lib app core spec unit dist misc",
        "py rs go ts",
    ),
    _files(
        "software",
        "a server's configuration",
        "nginx redis kafka mysql cron ssh mount proxy users limits hosts locale",
        "etc opt net tls srv web bak var",
        "conf yaml ini toml",
    ),
    _files(
        "media",
        "a photo archive",
        "beach sunset forest castle bridge harbor market wedding parade garden river canyon",
        "trips spain city night family baby sorted trash",
        "jpg raw tif gif",
    ),
    _files(
        "media",
        "a music library",
        "ballad anthem waltz tango hymn march lullaby overture sonata etude prelude rondo",
        "jazz bebop rock live choir mass best demo",
        "mp3 wav flac ogg",
    ),
    _files(
        "law",
        "a law firm's records",
        "lease brief motion ruling claim permit deed will appeal notice waiver bond",
        "cases civil clients firm court trial closed drafts",
        "pdf doc rtf odt",
    ),
    _files(
        "science",
        "a laboratory archive",
        "assay probe sample blank titer strain buffer culture plasma enzyme sensor trace",
        "runs pilot bench wet gels scans done scratch",
        "tsv h5 fcs dat",
    ),
    Application("office", "a staff database", "database"),
    _table(
        "transport",
        "a fleet register",
        {"names": SHIPS, "cities": TOWNS, "teams": ("north", "south", "west")},
        "ships lines line flagship load port",
    ),
    _table(
        "education",
        "a school register",
        {"names": PEOPLE, "cities": [f"class{n}" for n in range(1, 15)], "teams": ("chess", "choir", "drama")},
        "pupils clubs club captain score class",
    ),
    _table(
        "software",
        "a server inventory",
        {"names": HOSTS, "cities": TOWNS, "teams": ("mail", "search", "backup")},
        "hosts clusters cluster leader memory region",
    ),
    _table(
        "sport",
        "a league table",
        {"names": PEOPLE, "cities": TOWNS, "teams": ("lions", "bears", "hawks")},
        "players squads squad captain points town",
    ),
    _table(
        "health",
        "a ward list",
        {"names": PEOPLE, "cities": [f"ward{n}" for n in range(1, 15)], "teams": ("day", "night", "weekend")},
        "nurses shifts shift lead hours ward",
    ),
    Application("finance", "a bank", "bank"),
    _bank("finance", "a savings bank", PEOPLE, Send="Transfer"),
    _bank("retail", "a loyalty programme of points", PEOPLE, Send="Give"),
    _bank("industry", "a water works with tanks of litres", "T1 T2 T3 T4 T5 T6 T7 T8 T9 T10 T11", Send="Pump"),
    _bank("energy", "a battery park with cells of kWh", "Alfa Bravo Delta Foxtrot Golf Hotel Kilo Lima Oscar Papa"),
    _bank("games", "a guild's treasury of gold", "Elf Orc Bard Monk Mage Thief Druid Knight Rogue Troll Fairy"),
    _bank("transport", "a bike scheme with stations of bikes", "Dock Mill Park Pier Zoo Gate Fair Hill Lake Quay Rink"),
    _bank("software", "a cloud quota of cores", HOSTS, Send="Assign"),
)


def of_world(name: str) -> list[Application]:
    """The applications that have a world's rules."""
    return [application for application in APPLICATIONS if application.world == name]
