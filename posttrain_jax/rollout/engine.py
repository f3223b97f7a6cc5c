"""The host half of generation: continuous batching of sequences over a fixed number of slots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor as Threads
from functools import partial
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Key

from posttrain_jax.models.architecture import Architecture
from posttrain_jax.models.decoder import Decoder, abstract, unstack
from posttrain_jax.parallel import exchange, placement
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.rollout import decode, speculative
from posttrain_jax.rollout.request import Completion

FINISH = {decode.STOPPED: "stop", decode.AT_LIMIT: "length", decode.REPEATING: "repetition"}


class Engine:
    """Generates with a fixed set of compiled programs: none is compiled again, whatever is asked.

    The programs serve one bank of slots. Several banks, each with a thread and a fixed share of the sequences, keep as
    many CPU cores busy, for one core decodes a small model as fast as many; an accelerator wants one large bank.
    Weights that lie on several devices are served by one bank in any case: threads would mix up their collectives.

    Several processes call everything together. On a ``mesh`` all devices decode all prompts, weights and caches laid
    out as decoding wants (`mesh.SAMPLE`): for a model that no device holds alone. Without one, each process decodes
    its share of the prompts with a copy of the weights on its first device.
    """

    def __init__(
        self,
        arch: Architecture,
        limits: decode.Limits,
        *,
        banks: int = 1,
        compute_dtype: str = "float32",
        mesh: Mesh | None = None,
    ):
        """Raises ValueError where the model's length cannot hold a prompt and a response, or it cannot draft."""
        if limits.draft:
            speculative.check(arch)
        if limits.positions > arch.max_length:
            raise ValueError(
                f"max_prompt={limits.max_prompt} + max_response={limits.max_response} exceeds the model's "
                f"max_length={arch.max_length}"
            )
        self.arch, self.limits, self.banks, self.compute_dtype = arch, limits, banks, compute_dtype
        self.sharded = mesh is not None
        self._dispatch = threading.Lock()
        make = partial(Decoder, arch, param_dtype=compute_dtype, compute_dtype=compute_dtype, scan=False)
        graph, shapes = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))

        def load(weights):
            def cast(path, leaf):
                exact = any(name in str(key) for key in path for name in ("router", "bias", "head"))
                return leaf if exact else leaf.astype(compute_dtype)

            return jax.tree_util.tree_map_with_path(cast, unstack(weights, arch))

        steps = speculative if limits.draft else decode
        empty = lambda: steps.empty(nnx.merge(graph, shapes), limits)  # noqa: E731
        lying = slots_lying = None
        if mesh is not None and mesh.size > 1:
            _, placed = abstract(lambda: make(rngs=nnx.Rngs(0)), mesh, meshes.SAMPLE)
            lying = [leaf.sharding for leaf in jax.tree.leaves(placed)]
            slots_lying = jax.tree_util.tree_map_with_path(partial(_slot_sharding, mesh), jax.eval_shape(empty))
        self._lying, self._slots_lying = lying, slots_lying

        def compiled(f, **options):
            return jax.jit(placement.on(mesh, meshes.SAMPLE)(f), out_shardings=slots_lying, **options)

        self._load = jax.jit(lambda weights: jax.tree.leaves(load(weights)), out_shardings=lying)
        self._form = partial(jax.eval_shape, load)
        self._admit = compiled(lambda w, *args: steps.admit(nnx.merge(graph, w), *args), donate_argnums=1)
        self._decode = compiled(
            lambda w, slots, temperature: steps.decode(nnx.merge(graph, w), slots, temperature, limits),
            donate_argnums=1,
        )
        self._empty = compiled(empty)
        self._keys = jax.jit(lambda key, ids: jax.vmap(partial(jax.random.fold_in, key))(ids))

    def load(self, weights: nnx.State) -> nnx.State:
        """A trainer's weights as the engine decodes with them: layers apart, all but head and router in its format."""
        loaded = jax.tree.unflatten(jax.tree.structure(self._form(weights)), self._load(weights))
        return loaded if self.sharded else exchange.own_copy(loaded)

    def programs(self, weights: nnx.State, mesh: Mesh) -> dict[str, tuple[Callable, tuple]]:
        """What it compiles, each with abstract arguments; ``weights`` are a trainer's, abstract too.

        "transfer" makes the engine's weights of them, "prefill" admits prompts, "decode" goes on by a chunk.
        """
        everywhere, limits = meshes.replicated(mesh), self.limits

        def place(tree, where):
            leaves, form = jax.tree.flatten(tree)
            where = [everywhere] * len(leaves) if where is None else jax.tree.leaves(where)
            placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s) for x, s in zip(leaves, where, strict=True)]
            return jax.tree.unflatten(form, placed)

        own = place(self._form(weights), self._lying)
        slots = place(jax.eval_shape(self._empty), self._slots_lying)
        integers = lambda *shape: place(jax.ShapeDtypeStruct(shape, jnp.int32), None)  # noqa: E731
        keys = place(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), limits.slots)), None)
        prompts = integers(limits.prefill_batch, limits.max_prompt), integers(limits.prefill_batch)
        temperature = place(jax.ShapeDtypeStruct((), jnp.float32), None)
        return {
            "transfer": (self._load, (weights,)),
            "prefill": (self._admit, (own, slots, *prompts, integers(limits.slots), keys)),
            "decode": (self._decode, (own, slots, temperature)),
        }

    def generate(
        self,
        weights: nnx.State,
        prompts: Sequence[Sequence[int]],
        key: Key[Array, ""],
        *,
        samples: int = 1,
        temperature: float = 1.0,
    ) -> list[list[Completion]]:
        """Samples every prompt ``samples`` times.

        Args:
          weights: from `load`.
          prompts: token lists, each of 1 to max_prompt tokens.
          key: sample s of prompt i draws from ``fold_in(key, i * samples + s)``, whatever else is generated.
          samples: responses to each prompt.
          temperature: 0 is greedy.

        Returns:
          For each prompt in order, its completions in order.

        Raises:
          ValueError: a prompt is empty or longer than max_prompt.
        """
        self._check(prompts)
        answer = partial(self._answer, weights, prompts, key, samples, temperature)
        return answer(range(len(prompts))) if self.sharded else exchange.spread(range(len(prompts)), answer)

    def _answer(
        self, weights, prompts, key, samples: int, temperature: float, chosen: Sequence[int]
    ) -> list[list[Completion]]:
        """The completions of some of the prompts, over the banks."""
        sequences = np.array([prompt * samples + sample for prompt in chosen for sample in range(samples)], int)
        banks = self.banks if len(jax.tree.leaves(weights)[0].sharding.device_set) == 1 else 1
        shares = [share.tolist() for share in np.array_split(sequences, banks) if len(share)]
        stop = threading.Event()
        run = partial(self._run, weights, prompts, key, samples, temperature, stop)
        with Threads(len(shares) or 1) as threads:
            try:
                done = dict(chain.from_iterable(threads.map(run, shares)))
            finally:
                stop.set()
        return [[done[prompt * samples + sample] for sample in range(samples)] for prompt in chosen]

    def stream(
        self, weights: nnx.State, prompt: Sequence[int], key: Key[Array, ""], *, temperature: float = 1.0
    ) -> Iterator[tuple[np.ndarray, str | None]]:
        """Samples one prompt, yielding new tokens a chunk at a time with the reason it finished (None until then).

        Draws, and raises, as `generate` of that prompt alone.
        """
        self._check([prompt])
        slots = self._fill(weights, self._empty(), [prompt], {0: 0}, key, 1)
        given = 0
        while True:
            slots = self._decode(weights, slots, jnp.float32(temperature))
            status, count = (int(x[0]) for x in exchange.fetch((slots.status, slots.count)))
            yield exchange.fetch(slots.tokens)[0, given:count], FINISH.get(status)
            given = count
            if status != decode.RUNNING:
                return

    def _run(self, weights, prompts, key, samples, temperature, stop, share: list[int]) -> list[tuple[int, Completion]]:
        """Generates a share of the sequences in one bank, unless told to stop."""
        waiting, seated = share[::-1], {}
        slots, done = None, []
        while (waiting or seated) and not stop.is_set():
            newcomers = self._seat(waiting, seated, samples)
            with self._dispatch:  # so that no two threads compile one program
                slots = slots or self._empty()
                if newcomers:
                    slots = self._fill(weights, slots, prompts, newcomers, key, samples)
                    seated.update(newcomers)
                slots = self._decode(weights, slots, jnp.float32(temperature))
            status, count = exchange.fetch((slots.status, slots.count))
            finished = [slot for slot in seated if status[slot] != decode.RUNNING]
            if finished:
                tokens, logprobs = exchange.fetch((slots.tokens, slots.logprobs))
                drafts = exchange.fetch((slots.drafted, slots.kept)) if self.limits.draft else None
            for slot in finished:
                n = count[slot]
                drafted, kept = (int(each[slot]) for each in drafts) if drafts else (0, 0)
                said = tokens[slot, :n].copy(), logprobs[slot, :n].copy()
                completion = Completion(*said, FINISH[int(status[slot])], drafted, kept)
                done.append((seated.pop(slot), completion))
        return done

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        for i, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= self.limits.max_prompt:
                raise ValueError(f"prompt {i} has {len(prompt)} tokens; the engine takes 1 to {self.limits.max_prompt}")

    def _seat(self, waiting: list[int], seated: dict[int, int], samples: int) -> dict[int, int]:
        """Takes sequences off the queue into free slots, as far as one prefill batch of distinct prompts reaches."""
        newcomers: dict[int, int] = {}
        prompts: set[int] = set()
        for slot in range(self.limits.slots):
            if not waiting:
                break
            prompt = waiting[-1] // samples
            if prompt not in prompts and len(prompts) == self.limits.prefill_batch:
                break
            if slot not in seated:
                prompts.add(prompt)
                newcomers[slot] = waiting.pop()
        return newcomers

    def _fill(self, weights, slots, prompts, newcomers: dict[int, int], key, samples: int):
        limits = self.limits
        tokens = np.zeros((limits.prefill_batch, limits.max_prompt), np.int32)
        lengths = np.ones(limits.prefill_batch, np.int32)
        row_of_slot = np.full(limits.slots, -1, np.int32)
        ids = np.zeros(limits.slots, np.int32)
        rows: dict[int, int] = {}
        for slot, sequence in newcomers.items():
            prompt = sequence // samples
            if prompt not in rows:
                row = rows[prompt] = len(rows)
                lengths[row] = len(prompts[prompt])
                tokens[row, : lengths[row]] = prompts[prompt]
            row_of_slot[slot], ids[slot] = rows[prompt], sequence
        return self._admit(weights, slots, tokens, lengths, row_of_slot, self._keys(key, ids))


# of what attention keeps, the axis of heads beside that of slots
_HEADS = {"keys": "kv_heads", "values": "kv_heads", "state": "heads"}


def _slot_sharding(mesh: Mesh, path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    """Slots over the data axes, heads over "tensor"."""
    names = "batch", _HEADS.get(getattr(path[-1], "key", "")), *(None,) * leaf.ndim
    return meshes.sharding(names[: leaf.ndim], leaf.shape, mesh, meshes.SAMPLE)
