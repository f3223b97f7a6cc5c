"""Several rewards as one: a weighted sum, whose weights may be others in some domains."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

REWARDS = ("verifier", "model")
ENTRY = re.compile(r"(?P<domain>\w+)\.(?P<reward>\w+)=(?P<weight>\d+(\.\d*)?)")


def parse(entry: str) -> tuple[str, str, float]:
    """``'logic.model=0.5'`` as (domain, reward, weight).

    Raises:
      ValueError: another form.
    """
    match = ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(f"{entry!r} is no weight of a reward in a domain; an example is 'logic.model=0.5'")
    return match["domain"], match["reward"], float(match["weight"])


def weights(
    everywhere: Mapping[str, float], entries: Sequence[str], domains: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The weight of every reward in every domain: that of its entry (see `parse`), or else the one it has everywhere.

    Raises:
      ValueError: an entry of another form, or for a domain or reward that is not there.
    """
    found = {domain: dict(everywhere) for domain in domains}
    for entry in entries:
        domain, reward, weight = parse(entry)
        if domain not in found or reward not in everywhere:
            raise ValueError(f"{entry!r}: domains are {', '.join(found)}, rewards {', '.join(everywhere)}")
        found[domain][reward] = weight
    return found


def mixed(
    rewards: Mapping[str, Sequence[float]], domains: Sequence[str], weights: Mapping[str, Mapping[str, float]]
) -> list[float]:
    """r_i = Σ_k w_k(domain of i) r_ik.

    Args:
      rewards: by name, of each response.
      domains: of each response.
      weights: by domain and name; a name that a domain leaves out weighs nothing there.
    """
    return [
        sum(weights[domain].get(name, 0.0) * values[i] for name, values in rewards.items())
        for i, domain in enumerate(domains)
    ]
