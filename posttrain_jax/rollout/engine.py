"""The engine: compiled programs for one model, and batches of prompts answered with them over banks of slots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor as Threads
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Key

from pallas_kernels.grouped_matmul import Quantized
from posttrain_jax.models.architecture import Architecture
from posttrain_jax.models.decoder import Decoder, abstract, unstack
from posttrain_jax.parallel import exchange, placement
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.parallel.experts import coarsest
from posttrain_jax.parallel.overlap import sampling_options
from posttrain_jax.quant import int4 as quant
from posttrain_jax.rollout import decode, speculative
from posttrain_jax.rollout.bank import Bank
from posttrain_jax.rollout.request import Completion, Request


class Engine:
    """Generates with a fixed set of compiled programs: none is compiled again, whatever is asked.

    The programs serve one bank of slots. Several banks, each with a thread and a fixed share of the sequences, keep as
    many CPU cores busy, for one core decodes a small model as fast as many; an accelerator wants one large bank.
    Weights that lie on several devices are served by one bank in any case: threads would mix up their collectives.

    Several processes call everything together. On a ``mesh`` all devices decode all prompts, weights and caches laid
    out as decoding wants (`mesh.SAMPLE`): for a model that no device holds alone. Without one, each process decodes
    its share of the prompts with a copy of the weights on its first device, or on ``device``.
    """

    def __init__(
        self,
        arch: Architecture,
        limits: decode.Limits,
        *,
        banks: int = 1,
        compute_dtype: str = "float32",
        mesh: Mesh | None = None,
        device: Any = None,
        int4: bool = False,
    ):
        """With ``int4`` the routed experts are quantised by `load` (`quant.int4`); all else stays as it is.

        Raises:
          ValueError: the model's length cannot hold a prompt and a response, it cannot draft, or the inputs of its
            experts are not whole groups.
        """
        if limits.draft:
            speculative.check(arch)
        if limits.positions > arch.max_length:
            raise ValueError(
                f"max_prompt={limits.max_prompt} + max_response={limits.max_response} exceeds the model's "
                f"max_length={arch.max_length}"
            )
        self.arch, self.limits, self.banks, self.compute_dtype = arch, limits, banks, compute_dtype
        self.sharded, self._device = mesh is not None, device
        self._dispatch = threading.Lock()
        make = partial(Decoder, arch, param_dtype=compute_dtype, compute_dtype=compute_dtype, scan=False)
        graph, shapes = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))

        def load(weights):
            def cast(path, leaf):
                if int4 and _routed(path, leaf):
                    return quant.quantize_experts(leaf)
                exact = any(name in str(key) for key in path for name in ("router", "bias", "head"))
                return leaf if exact else leaf.astype(compute_dtype)

            return jax.tree_util.tree_map_with_path(cast, unstack(weights, arch))

        steps = speculative if limits.draft else decode
        empty = lambda: steps.empty(nnx.merge(graph, shapes), limits)  # noqa: E731
        lying = slots_lying = None
        if mesh is not None and mesh.size > 1:
            _, placed = abstract(lambda: make(rngs=nnx.Rngs(0)), mesh, meshes.SAMPLE)
            lying = jax.tree.leaves(jax.tree_util.tree_map_with_path(partial(_lying, mesh, int4), placed))
            slots_lying = jax.tree_util.tree_map_with_path(partial(_slot_sharding, mesh), jax.eval_shape(empty))
        self._lying, self._slots_lying = lying, slots_lying

        def compiled(f, **options):
            run = placement.on(mesh, meshes.SAMPLE)(f)
            return jax.jit(run, out_shardings=slots_lying, compiler_options=sampling_options(mesh), **options)

        self._load = jax.jit(lambda weights: jax.tree.leaves(load(weights)), out_shardings=lying)
        self._form = partial(jax.eval_shape, load)

        def on_slots(step):
            return compiled(lambda w, *args: step(nnx.merge(graph, w), *args, limits), donate_argnums=1)

        self._admit, self._read, self._decode = (on_slots(step) for step in (steps.admit, steps.read, steps.decode))
        alone = jax.sharding.SingleDeviceSharding(device) if device else slots_lying
        self._empty = jax.jit(placement.on(mesh, meshes.SAMPLE)(empty), out_shardings=alone)
        self._stop = compiled(decode.stop, donate_argnums=0)
        self._chosen = jax.jit(decode.experts_chosen)
        self._keys = jax.jit(lambda key, ids: jax.vmap(partial(jax.random.fold_in, key))(ids))

    def load(self, weights: nnx.State) -> nnx.State:
        """A trainer's weights as the engine decodes with them: layers apart, all but head and router in its format."""
        loaded = jax.tree.unflatten(jax.tree.structure(self._form(weights)), self._load(weights))
        return loaded if self.sharded else exchange.own_copy(loaded, self._device)

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
        temperature = place(jax.ShapeDtypeStruct((limits.slots,), jnp.float32), None)
        seating = decode.Seating(integers(limits.slots), keys, temperature, integers(limits.slots))
        return {
            "transfer": (self._load, (weights,)),
            "prefill": (self._admit, (own, slots, *prompts, seating)),
            "decode": (self._decode, (own, slots)),
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
          For each prompt in order, its completions in order; with `Limits.routing` they tell their experts.

        Raises:
          ValueError: a prompt is empty or longer than max_prompt.
        """
        for prompt, asked in enumerate(prompts):
            self._check_length(asked, self.limits.max_prompt, f"prompt {prompt}")
        asked = self.limits.max_response, temperature, self.limits.routing
        requests = [
            Request(prompt, number * samples + sample, *asked)
            for number, prompt in enumerate(prompts)
            for sample in range(samples)
        ]
        return self._answer_all(weights, requests, key, samples)

    def complete(self, weights: nnx.State, requests: Sequence[Request]) -> list[Completion]:
        """Answers requests together: each as a `Service` answers it, of its prompt and its seed alone.

        Raises:
          ValueError: what `check` finds.
        """
        for request in requests:
            self.check(request)
        return [one for (one,) in self._answer_all(weights, requests, jax.random.key(0), 1)]

    def _answer_all(
        self, weights, requests: Sequence[Request], key: Key[Array, ""], samples: int
    ) -> list[list[Completion]]:
        """Completions by ``samples`` requests in a row, which one process answers."""
        answer, groups = partial(self._answer, weights, requests, key, samples), range(len(requests) // samples)
        return answer(groups) if self.sharded else exchange.spread(groups, answer)

    def _answer(self, weights, requests, key, samples: int, chosen: Sequence[int]) -> list[list[Completion]]:
        """The completions of some of the groups, over the banks."""
        sequences = np.array([group * samples + sample for group in chosen for sample in range(samples)], int)
        shares = [share.tolist() for share in np.array_split(sequences, self.banks_for(weights)) if len(share)]
        stop = threading.Event()
        run = partial(self._run, weights, requests, key, stop)
        with Threads(len(shares) or 1) as threads:
            try:
                done = dict(chain.from_iterable(threads.map(run, shares)))
            finally:
                stop.set()
        return [[done[group * samples + sample] for sample in range(samples)] for group in chosen]

    def stream(
        self, weights: nnx.State, prompt: Sequence[int], key: Key[Array, ""], *, temperature: float = 1.0
    ) -> Iterator[tuple[np.ndarray, str | None]]:
        """Samples one prompt, yielding new tokens a chunk at a time with the reason it finished (None until then).

        Draws, and raises, as `generate` of that prompt alone.
        """
        self._check_length(prompt, self.limits.max_prompt, "prompt 0")
        bank = Bank(self, weights, key, reuse=False)
        bank.submit(0, Request(prompt, 0, self.limits.max_response, temperature))
        given = 0
        while bank.busy:
            for _, completion in bank.poll():
                yield completion.tokens[given:], completion.finish
                return
            for tokens, _ in bank.so_far().values():
                yield tokens[given:], None
                given = len(tokens)

    def banks_for(self, weights: nnx.State) -> int:
        """How many banks serve these weights at once: one where they lie on several devices."""
        return self.banks if len(jax.tree.leaves(weights)[0].sharding.device_set) == 1 else 1

    def check(self, request: Request) -> None:
        """Whether a request can be served.

        Raises:
          ValueError: a prompt that is empty or leaves no room for a response, a seed of more than 32 bits, a negative
            temperature or length, or experts asked of an engine that keeps none (`Limits.routing`).
        """
        self._check_length(request.prompt, self.limits.positions - 1, "the prompt")
        if not 0 <= request.seed < 2**32:
            raise ValueError(f"seed={request.seed} is not a number of 32 bits")
        if request.max_tokens < 1 or request.temperature < 0:
            raise ValueError(f"max_tokens={request.max_tokens} and temperature={request.temperature} make no response")
        if request.routing and not self.limits.routing:
            raise ValueError("routing is asked for, and this engine keeps none (Limits.routing)")

    def _check_length(self, prompt: Sequence[int], most: int, name: str) -> None:
        if not 1 <= len(prompt) <= most:
            raise ValueError(f"{name} has {len(prompt)} tokens; the engine takes 1 to {most}")

    def _run(self, weights, requests, key, stop, share: list[int]) -> list[tuple[int, Completion]]:
        """Answers a share of the requests in one bank, unless told to stop."""
        bank, done = Bank(self, weights, key, reuse=False), []
        for number in share:
            bank.submit(number, requests[number])
        while bank.busy and not stop.is_set():
            done += bank.poll()
        return done

    def _seat(self, waiting: list[int], free: list[int], prompt_of: Callable[[int], Hashable]) -> dict[int, int]:
        """Who of the ``waiting`` takes which free slot, as far as one prefill batch of distinct prompts reaches."""
        newcomers: dict[int, int] = {}
        prompts: set[Hashable] = set()
        for slot, ticket in zip(free, waiting, strict=False):
            prompt = prompt_of(ticket)
            if prompt not in prompts and len(prompts) == self.limits.prefill_batch:
                break
            prompts.add(prompt)
            newcomers[slot] = ticket
        return newcomers


def _routed(path: tuple, leaf: Any) -> bool:
    """Whether a weight, of layers that stand apart, is a routed expert's."""
    names = [str(getattr(key, "key", key)) for key in path]
    return len(leaf.shape) == 3 and "ffn" in names and any(name in names for name in ("gate", "up", "down"))


def _lying(mesh: Mesh, int4: bool, path: tuple, leaf: jax.ShapeDtypeStruct) -> Any:
    """Where a weight lies; both parts of a quantised one as its scales can."""
    if not (int4 and _routed(path, leaf)):
        return leaf.sharding
    scales = coarsest(jax.eval_shape(quant.quantize_experts, leaf))
    outward = any(str(getattr(key, "key", key)) == "down" for key in path)
    axes = ("expert", "expert_ffn", "embed") if outward else ("expert", "embed", "expert_ffn")
    here = meshes.sharding(axes, scales, mesh, meshes.SAMPLE)
    return Quantized(here, here)  # pyright: ignore[reportArgumentType] places, not arrays


# of what attention keeps, the axis of heads beside that of slots
_HEADS = {"keys": "kv_heads", "values": "kv_heads", "state": "heads"}


def _slot_sharding(mesh: Mesh, path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    """Slots over the data axes, heads over "tensor"."""
    names = "batch", _HEADS.get(getattr(path[-1], "key", "")), *(None,) * leaf.ndim
    return meshes.sharding(names[: leaf.ndim], leaf.shape, mesh, meshes.SAMPLE)
