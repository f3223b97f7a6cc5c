"""Is one flipped bit in a checkpoint noticed?

Saves two checkpoints of the tiny model with its optimiser, then, many times over: copies them, flips one random bit of
the newer one's array files, and asks two readers. posttrain_jax must notice, set the step aside, say so and take the
step before. Orbax alone, on the same files, either fails or restores; what it restores is compared with what was saved.

    python benchmarks/damage.py [--flips=80]
"""

from __future__ import annotations

import collections
import logging
import random
import shutil
import tempfile
import warnings
from pathlib import Path

import measure


def main() -> None:
    """Flips bits, one at a time, in fresh copies."""
    parser = measure.parser(__doc__, "damage")
    parser.add_argument("--flips", type=int, default=80, help="bits flipped, each in a fresh copy")
    parser.add_argument("--seed", type=int, default=0, help="of the places")
    options = parser.parse_args()
    measure.start(cores=2)

    import jax
    import orbax.checkpoint as ocp

    from posttrain_jax.models.decoder import abstract, materialise
    from posttrain_jax.parallel.mesh import make_mesh
    from posttrain_jax.run.checkpoint import Checkpointer
    from posttrain_jax.stages.optimizing import make_optimizing
    from posttrain_jax.stages.setup import make_model
    from posttrain_jax.stages.step import abstract_state, fresh_state

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="Sharding info not provided")
    recipe = measure.recipe()
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizing(recipe.sft.optimizer, recipe.sft.steps, recipe.model).optimizer
    _, weights = abstract(make_model(recipe), mesh)
    state = fresh_state(materialise(make_model(recipe), weights), optimizer, mesh)
    # random moments, as training leaves them: zeros would be stored as nothing
    leaves, tree = jax.tree.flatten(state.optimizer)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moments = [jax.random.normal(k, x.shape, x.dtype) if x.ndim else x for k, x in zip(keys, leaves, strict=True)]
    state.optimizer = jax.tree.unflatten(tree, moments)

    dice, ours, plain = random.Random(options.seed), collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        original, copy = Path(name) / "original", Path(name) / "copy"
        saver = Checkpointer(original)
        for step in (1, 2):
            saver.save(step, state, {"step": step})
        saver.close()
        sound = ocp.PyTreeCheckpointer().restore(original / "2" / "arrays")
        for count in range(options.flips):
            shutil.copytree(original, copy)
            flip(copy / "2" / "arrays", dice)
            plain[orbax_alone(copy / "2" / "arrays", sound)] += 1
            ours[posttrain_jax(Checkpointer, copy, abstract_state(weights, optimizer, mesh))] += 1
            shutil.rmtree(copy)
            if count % 10 == 9:
                print(f"{count + 1} flips: posttrain_jax {dict(ours)}; Orbax alone {dict(plain)}", flush=True)
    measure.show(
        f"one flipped bit, {options.flips} times",
        ("reader", "what happened", "times"),
        [("posttrain_jax", *item) for item in ours.items()] + [("Orbax alone", *item) for item in plain.items()],
    )
    numbers = {"flips": options.flips, "seed": options.seed, "posttrain_jax": dict(ours), "orbax_alone": dict(plain)}
    measure.write(options.output, numbers)


def flip(folder: Path, dice: random.Random) -> None:
    """Flips one bit, each bit of all files below ``folder`` being as likely as any other."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    (path,) = dice.choices(files, [file.stat().st_size for file in files])
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def orbax_alone(folder: Path, sound) -> str:
    """What a plain Orbax restore of the damaged files does."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    try:
        restored = ocp.PyTreeCheckpointer().restore(folder)
    except Exception:  # whatever it raises, it noticed
        return "failed"
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), restored, sound)
    return "restored, nothing differs" if jax.tree.all(same) else "restored silently, numbers differ"


def posttrain_jax(checkpointer, folder: Path, abstract) -> str:
    """What our restore of the damaged files does; the step before the damaged one is sound."""
    said: list[str] = []
    reader = checkpointer(folder, log=said.append)
    try:
        restored = reader.restore(abstract)
    finally:
        reader.close()
    aside = (folder / "2.damaged").is_dir() and not (folder / "2").exists()
    if restored.step == 1 and aside and any("damaged" in line for line in said):
        return "noticed, set aside, step before used"
    return f"restored step {restored.step}, said {said}"


if __name__ == "__main__":
    main()
