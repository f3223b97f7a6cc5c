"""Answers that are a number, with or without a unit."""

from __future__ import annotations

import re
from fractions import Fraction

from posttrain_jax.errors import UserError
from posttrain_jax.rewards.graders.answer import final, plain
from posttrain_jax.rewards.verdict import Verdict, judged, wrong

LONGEST_NUMBER = 60  # characters
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(
    rf"(?P<sign>[-+−]?)\s*(?P<money>[$€£¥]?)\s*"
    rf"(?:\\[dt]?frac\{{(?P<top>\d+)\}}\{{(?P<bottom>\d+)\}}|(?P<value>{DIGITS})"
    rf"(?:\s*/\s*(?P<over>\d+)|[eE](?P<power>[-+]?\d{{1,3}})|\s*(?:×|x|\*|\\times|\\cdot)\s*10\^\{{?(?P<ten>[-+]?\d{{1,3}})\}}?)?)"
    r"\s*(?P<unit>.*)",
    re.ASCII,
)
UNITS: dict[str, dict[str, str]] = {  # each in the first of its row
    "length": {"m": "1", "km": "1000", "cm": "1/100", "mm": "1/1000", "in": "254/10000", "ft": "3048/10000"}
    | {
        "mi": "1609344/1000",
        "yd": "9144/10000",
        "米": "1",
        "千米": "1000",
        "公里": "1000",
        "厘米": "1/100",
        "毫米": "1/1000",
    },
    "mass": {
        "g": "1",
        "kg": "1000",
        "mg": "1/1000",
        "t": "1000000",
        "lb": "45359237/100000",
        "oz": "28349523125/1000000000",
    }
    | {"克": "1", "千克": "1000", "公斤": "1000", "吨": "1000000"},
    "time": {"s": "1", "ms": "1/1000", "min": "60", "h": "3600", "d": "86400"}
    | {"秒": "1", "分钟": "60", "小时": "3600", "天": "86400"},
    "volume": {"L": "1", "mL": "1/1000", "m^3": "1000", "cm^3": "1/1000", "升": "1", "毫升": "1/1000"},
    "area": {"m^2": "1", "cm^2": "1/10000", "km^2": "1000000", "平方米": "1", "平方厘米": "1/10000"},
    "share": {"": "1", "%": "1/100"},
}
WORD = re.compile(
    r"(?!(?:dozen|hundred|thousand|million|[bt]rillion|k|or|and|plus)\b|.*[十百千万亿])[^\W\d_]{1,20}", re.I
)
SPELLED = {
    "meter": "m",
    "metre": "m",
    "kilometer": "km",
    "centimeter": "cm",
    "millimeter": "mm",
    "inch": "in",
    "foot": "ft",
}
SPELLED |= {
    "feet": "ft",
    "inche": "in",
    "mile": "mi",
    "yard": "yd",
    "gram": "g",
    "kilogram": "kg",
    "pound": "lb",
    "ounce": "oz",
}
SPELLED |= {"second": "s", "sec": "s", "minute": "min", "hour": "h", "day": "d", "liter": "L", "litre": "L", "ml": "mL"}
SPELLED |= {"l": "L", "m²": "m^2", "cm²": "cm^2", "m2": "m^2", "m3": "m^3", "cm3": "cm^3", "\\%": "%", "percent": "%"}


def number(text: str) -> tuple[Fraction, str]:
    r"""A number's exact value and its unit: ``-1,234.5 km``, ``3/4``, ``\frac{1}{2}``, ``1e-3``, ``2 × 10^3``.

    Raises:
      ValueError: anything else.
    """
    found = NUMBER.fullmatch(plain(text)) if len(text) <= LONGEST_NUMBER else None
    if not found or int(found["over"] or found["bottom"] or 1) == 0:
        raise ValueError("not a number")
    top = Fraction((found["value"] or found["top"]).replace(",", ""))
    power = int(found["power"] or found["ten"] or 0)
    value = top / int(found["over"] or found["bottom"] or 1) * Fraction(10) ** power
    return -value if found["sign"] in ("-", "−") and found["sign"] else value, _symbol(found["unit"])


def numeric(
    text: str, expected: str, *, relative: str = "0", absolute: str = "0", unit_needed: bool = False
) -> Verdict:
    """Right if the final answer is within a tolerance of ``expected``, in its unit or one that converts to it.

    Args:
      text: the response.
      expected: a number, with its unit if it has one: ``"3.6 km"``.
      relative: tolerance as a share of ``expected``; ``absolute``: in its unit. The larger counts. Decimal text.
      unit_needed: a bare number is wrong where ``expected`` has a unit.

    Raises:
      UserError: ``expected`` is not a number.
    """
    try:
        target, unit = number(expected)
    except ValueError:
        raise UserError(f"the expected answer {expected!r} is not a number such as '3.6 km'") from None
    try:
        answer = final(text)
        value, given = number(answer)
        if given or unit_needed:
            value *= _factor(given, unit)
    except ValueError as problem:
        return wrong(str(problem), text.strip()[:LONGEST_NUMBER])
    tolerance = max(Fraction(absolute), abs(target) * Fraction(relative))
    return judged(abs(value - target) <= tolerance, "another number", answer)


def _symbol(unit: str) -> str:
    unit = re.sub(r"\\(?:text|mathrm)\{\s*([^{}]*)\}", r"\1", unit).strip().removesuffix(".")
    known = {u for row in UNITS.values() for u in row}
    for spelled in (unit, unit.removesuffix("s")):
        if spelled in known or spelled in SPELLED:
            return SPELLED.get(spelled, spelled)
    return unit


def _factor(given: str, wanted: str) -> Fraction:
    if not wanted and WORD.fullmatch(given):
        return Fraction(1)  # five apples are five
    for row in UNITS.values():
        if given in row and wanted in row:
            return Fraction(row[given]) / Fraction(row[wanted])
    if given != wanted:
        raise ValueError("another unit")
    return Fraction(1)
