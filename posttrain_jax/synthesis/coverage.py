"""A map of tools: near each other where their words are, drawn as SVG."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Float

BUCKETS = 256
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")


def features(tools: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "tools buckets"]:
    """Words of a declaration hashed into buckets, weighted by their rarity (tf-idf), each row of length 1."""
    counts = np.zeros((len(tools), BUCKETS))
    for row, tool in enumerate(tools):
        for word in re.findall(r"[A-Za-z]+", json.dumps(tool["function"])):
            counts[row, xxhash.xxh32_intdigest(word.lower().encode()) % BUCKETS] += 1
    weighted = np.log1p(counts) * np.log((1 + len(tools)) / (1 + (counts > 0).sum(0)))
    return weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-9)


def projected(points: Float[np.ndarray, "tools buckets"]) -> Float[np.ndarray, "tools 2"]:
    """The first two principal components, scaled into the unit square."""
    centred = points - points.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    plane = centred @ axes[:, :-3:-1]
    low, high = plane.min(0), plane.max(0)
    return (plane - low) / np.maximum(high - low, 1e-9)


def picture(tools: Sequence[Mapping[str, Any]], groups: Sequence[str], *, size: int = 640) -> str:
    """The map as SVG: a dot for each tool, coloured by its group, its name shown by the browser."""
    names = sorted(set(groups))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    places = projected(features(tools)) if len(tools) > 2 else np.zeros((len(tools), 2))
    dots = [
        f'<circle cx="{20 + x * (size - 40):.1f}" cy="{20 + y * (size - 40):.1f}" r="2.5" fill="{colour[group]}" '
        f'fill-opacity=".6"><title>{html.escape(tool["function"]["name"])} ({html.escape(group)})</title></circle>'
        for tool, group, (x, y) in zip(tools, groups, places, strict=True)
    ]
    legend = [
        f'<circle cx="{size + 20}" cy="{26 + 22 * i}" r="6" fill="{colour[name]}"/>'
        f'<text x="{size + 34}" y="{31 + 22 * i}">{html.escape(name)} {groups.count(name):,}</text>'
        for i, name in enumerate(names)
    ]
    height = max(size, math.ceil(22 * len(names) + 30))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size + 200}" height="{height}" font-family="sans-serif" '
        f'font-size="14"><rect width="100%" height="100%" fill="white"/>{"".join(dots + legend)}</svg>\n'
    )
