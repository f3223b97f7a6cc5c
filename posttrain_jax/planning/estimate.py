"""From what the compiler made of a program to seconds, utilisation, and what stands in the way. Imports no JAX.

time      the schedule's: the core's work, and where it waits for links or copies
MFU       FLOPs of the model's own arithmetic / (time · devices · peak)
losses    time = model FLOPs / peak + recomputed FLOPs / peak + what each place takes beyond its FLOPs + waiting
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from posttrain_jax.planning.chips import GIB, Slice
from posttrain_jax.planning.collectives import BETWEEN
from posttrain_jax.planning.work import RL, SFT, work
from posttrain_jax.run.recipe import Recipe

ROWS = {SFT: "sft.microbatch_rows", RL: "rl.microbatch_rows", "prefill": "rollout.prefill_batch",
        "decode": "rollout.slots"}  # fmt: skip


def estimate(recipe: Recipe, part: Slice, name: str, told: dict[str, Any]) -> dict[str, Any]:
    """What is told of one program, as JSON: `Reading`'s ``told`` with what follows from it."""
    if "error" in told:
        return {"program": name, "fits": False, "error": told["error"]}
    chip, memory = part.chip, told["memory"]
    used = sum(memory.values())
    row: dict[str, Any] = {
        "program": name,
        "fits": told["fits"] and used <= chip.hbm,
        "memory": memory,
        "memory_total": used,
        "hbm": chip.hbm,
        "compile_seconds": told["compile_seconds"],
        "host_bytes": told["host_bytes"],
        "cached": told["cached"],
    }
    if not row["fits"]:
        row |= {"refusal": told["refusal"], "nearest": nearest(recipe, part, name, memory)}
    if not told["totals"]:
        return row
    totals, own = told["totals"], work(recipe, name)
    seconds = totals["seconds"]
    rooflines = {
        "compute": totals["flops"] / chip.peak,
        "hbm": totals["hbm"] / chip.hbm_bandwidth,
        "ici": sum(c["seconds"] for c in told["collectives"] if not c["kind"].endswith(BETWEEN)),
        "dcn": sum(c["seconds"] for c in told["collectives"] if c["kind"].endswith(BETWEEN)),
    }
    hours = seconds * own.calls * part.chips / 3600
    return row | {
        "seconds": seconds,
        "flops": totals["flops"],
        "model_flops": own.flops / part.devices,
        "hbm_bytes": totals["hbm"],
        "cycles": totals["cycles"],
        "core_seconds": totals["core"],
        "kernel_seconds": totals["kernel"],
        "waiting_seconds": totals["waiting"],
        "collectives": told["collectives"],
        "rooflines": rooflines,
        "bound_by": max(rooflines, key=lambda name: rooflines[name]),
        "mfu": own.flops / part.devices / chip.peak / seconds if seconds else 0.0,
        "tokens": own.tokens,
        "tokens_per_second": own.tokens / seconds if seconds else 0.0,
        "calls": own.calls,
        "chip_hours": hours,
        "losses": losses(told, own.flops / part.devices, chip.peak)[:3],
        "loops_assumed_once": int(totals["assumed"]),
    }


def losses(told: dict[str, Any], model_flops: float, peak: float) -> list[dict[str, Any]]:
    """Where the time goes beyond the model's arithmetic at the peak, the largest first."""
    totals = told["totals"]
    by_place: dict[str, float] = defaultdict(float)
    for source, seconds in told["sources"]:
        by_place[place(source)] += seconds
    by_place["waiting for links"] = totals["waiting"]
    by_place["waiting for copies from HBM"] = totals["copying"]
    by_place["arithmetic beyond the model's"] = max(totals["flops"] - model_flops, 0.0) / peak
    ordered = sorted(by_place.items(), key=lambda item: -item[1])
    return [{"what": what, "seconds": seconds} for what, seconds in ordered if seconds > 0]


def place(source: str) -> str:
    """The last words of a path in a program, without what JAX's own machinery calls itself."""
    plain = {"closed_call", "while", "body", "cond", "checkpoint", "rematted_computation", "shard_map", "jvp()"}
    words = [word for word in source.split("/")[1:] if word not in plain and not word.startswith("transpose(jvp")]
    backward = "backward: " if "transpose(jvp" in source else ""
    return backward + "/".join(words[-2:]) if words else "without a name"


def nearest(recipe: Recipe, part: Slice, name: str, memory: dict[str, float]) -> str:
    """The nearest setting with which a program may fit, if what it moves shrinks with it; compiling that one tells."""
    free = part.chip.hbm * 0.97
    moving = memory["activations"] + memory.get("batch", 0.0) + memory.get("cache", 0.0)
    fixed = sum(memory.values()) - moving
    mesh = recipe.mesh
    shards = part.devices // (mesh.tensor * mesh.context) or 1
    key = ROWS.get(name)
    if key and fixed < free:
        section, field = key.split(".")
        rows = getattr(getattr(recipe, section), field)
        fewer = [n for n in range(rows - 1, 0, -1) if rows % n == 0 and (n % shards == 0 or name == "prefill")]
        fitting = next((n for n in fewer if fixed + moving * n / rows <= free), None)
        if fitting:
            return f"config.{key}={fitting} may, with about {(fixed + moving * fitting / rows) / GIB:.0f} GiB"
        length = getattr(getattr(recipe, section), "length", 1)
        for parts in (2, 4, 8, 16):  # rows that cannot be fewer can be shared
            divide = (mesh.fsdp, rows, length)
            if fixed + moving / parts <= free and all(number % parts == 0 for number in divide):
                return (
                    f"config.mesh.context={mesh.context * parts} config.mesh.fsdp={mesh.fsdp // parts}"
                    f" config.{key}={rows // parts} may, with about {(fixed + moving / parts) / GIB:.0f} GiB"
                )
    if name in (SFT, RL) and recipe.precision.remat == "none" and fixed < free:
        return "config.precision.remat=full may: activations of a layer are then computed again"
    larger, whole = part, sum(memory.values())
    while whole * part.devices / larger.devices > free and larger.devices < 1 << 14:
        larger = larger.doubled()
    share = whole * part.devices / larger.devices
    return f"--topology={larger.name} may, with about {share / GIB:.0f} GiB if all is split over its devices"
