"""The decoder: embedding, layers scanned in stacks, final norm, untied head with float32 logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.softmax_attention import KEPT
from posttrain_jax.models.architecture import Architecture
from posttrain_jax.models.layer import ATTENDED, Layer, Seen
from posttrain_jax.models.mtp import NextToken
from posttrain_jax.models.parts import constant, parameter, rms_norm
from posttrain_jax.models.rope import rotation
from posttrain_jax.parallel import mesh as meshes
from posttrain_jax.parallel.embedding import embed
from posttrain_jax.parallel.placement import constrain

Cache = tuple[Any, ...]
Replayed = Int[Array, "batch length layers experts_per_token"]

# name -> what the backward pass finds stored of a layer, and need not compute again
REMAT: dict[str, Any] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_attention": jax.checkpoint_policies.save_only_these_names(ATTENDED, KEPT),
    "save_dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
_ACTIVATIONS = ("batch", "length", None)


class Decoder(nnx.Module):
    """``model(tokens, positions=None, segment_ids=None) -> logits``.

    With ``scan`` the weights of repeating layers are stacked along a leading "layers" axis and scanned over, so compile
    time does not grow with depth: the form for training. ``stacks[s][p]`` holds the layers at position p of the pattern
    of stack s (`Architecture.stacks`); ``remat`` names what a layer's backward pass finds stored (`REMAT`). Without
    ``scan``, ``layers[i]`` stand one by one: the form for decoding, where slicing a stacked weight at every token would
    copy it (`unstack` turns the first form's weights into the second's).

    ``qat="int4"`` is training for INT4: the routed experts compute with what their INT4 form holds, and gradients pass
    to the weights as they are.
    """

    def __init__(
        self,
        arch: Architecture,
        *,
        rngs: nnx.Rngs,
        param_dtype: str = "float32",
        compute_dtype: str = "float32",
        remat: str = "none",
        scan: bool = True,
        qat: str = "none",
    ):
        dtype = jnp.dtype(param_dtype)
        if remat not in REMAT:
            raise ValueError(f"remat={remat!r} is not one of {', '.join(REMAT)}")
        self.arch, self.compute_dtype, self.remat, self.scan = arch, compute_dtype, remat, scan
        layer = partial(Layer, arch, rngs=rngs, dtype=dtype, qat=qat)
        self.embed = parameter(rngs, (arch.vocab, arch.hidden), ("vocab", "embed"), stddev=1.0, dtype=dtype)
        if scan:
            self.stacks = nnx.List(
                [nnx.List([layer(kind, stack=(stack.repeats,)) for kind in stack.pattern]) for stack in arch.stacks]
            )
        else:
            self.layers = nnx.List([layer(arch.kind(i)) for i in range(arch.layers)])
        self.norm = constant(1.0, (arch.hidden,), ("norm",), dtype=dtype)
        std = arch.hidden**-0.5
        self.head = parameter(rngs, (arch.hidden, arch.vocab), ("embed", "vocab"), stddev=std, dtype=dtype)
        if arch.mtp_layers:
            self.mtp = NextToken(arch, rngs=rngs, dtype=dtype, qat=qat)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None = None,
        segment_ids: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length vocab"]:
        """Float32 logits of the token after each position."""
        return self.logits(self.hidden(tokens, positions, segment_ids))

    def hidden(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None = None,
        segment_ids: Int[Array, "batch length"] | None = None,
        replayed: Replayed | None = None,
    ) -> Float[Array, "batch length hidden"]:
        """Normalised hidden states; no token attends outside its segment, or ahead of itself."""
        return self.normed(self.trunk(tokens, positions, segment_ids, replayed))

    def trunk(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None = None,
        segment_ids: Int[Array, "batch length"] | None = None,
        replayed: Replayed | None = None,
    ) -> Float[Array, "batch length hidden"]:
        """What leaves the last layer, before the final norm (`normed`)."""
        return self.watched_trunk(tokens, positions, segment_ids, lambda seen: (), replayed)[0]

    def watched_trunk(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None,
        segment_ids: Int[Array, "batch length"] | None,
        watch: Callable[[Seen], Any],
        replayed: Replayed | None = None,
    ) -> tuple[Float[Array, "batch length hidden"], list[Any]]:
        """`trunk`, and what ``watch`` makes of what is to be seen of each layer.

        Args:
          replayed: experts that tokens were sent to, for them to be sent there again (routing replay, R3, arXiv
            2510.11370); -1 where the router chooses.

        Returns:
          With ``scan``, what was seen is held as the weights are: for each stack, for each position of its pattern, all
          repeats together; without, a value for each layer.
        """
        positions, segment_ids = _placed(tokens, positions, segment_ids)
        x, turned = self._embed(tokens), rotation(self.arch, positions)
        seen: list[Any] = []
        if not self.scan:
            for i, layer in enumerate(self.layers):
                x, here = layer(x, turned, segment_ids, i, None if replayed is None else replayed[:, :, i])
                seen.append(watch(here))
            return x, seen
        for stack, layers in zip(self.arch.stacks, self.stacks, strict=True):
            graphs, weights = zip(*(nnx.split(layer) for layer in layers), strict=True)

            def run(graph, weights, x, number):
                experts = None if replayed is None else jnp.take(replayed, number, axis=2)
                x, here = nnx.merge(graph, weights)(x, turned, segment_ids, number, experts)
                return constrain(x, _ACTIVATIONS), watch(here)

            if self.remat != "none":
                run = jax.checkpoint(run, policy=REMAT[self.remat], static_argnums=0)

            def step(x, repeat, run=run, graphs=graphs, first=stack.first):
                weights, number = repeat
                saw = []
                for position, (graph, own) in enumerate(zip(graphs, weights, strict=True)):
                    x, here = run(graph, own, x, first + number * len(graphs) + position)
                    saw.append(here)
                return x, saw

            unrolled = self.arch.layers <= _FEW_LAYERS
            x, saw = jax.lax.scan(step, x, (weights, jnp.arange(stack.repeats)), unroll=unrolled)
            seen.append(saw)
        return x, seen

    def normed(self, trunk: Float[Array, "batch length hidden"]) -> Float[Array, "batch length hidden"]:
        """The final norm."""
        return rms_norm(trunk, self.norm[...], self.arch.norm_eps)

    def next_hidden(
        self,
        trunk: Float[Array, "batch length hidden"],
        following: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None = None,
        segment_ids: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length hidden"]:
        """Normalised states from which the head predicts the token after ``following`` (multi-token prediction).

        For a model with ``mtp_layers``; ``trunk`` is what `trunk` gave.
        """
        positions, segment_ids = _placed(following, positions, segment_ids)
        return self.mtp(trunk, self._embed(following), rotation(self.arch, positions), segment_ids)

    def empty_cache(self, batch: int, length: int, routing: bool = False) -> Cache:
        """What the layers keep of no tokens, with room for ``length`` positions. For a model without ``scan``.

        With ``routing`` they also keep the experts that each token went to, as "chosen".
        """
        self._check_unscanned()
        return tuple(layer.empty_cache(batch, length, self.compute_dtype, routing) for layer in self.layers)

    def extend(
        self,
        tokens: Int[Array, "batch new"],
        positions: Int[Array, "batch new"],
        cache: Cache,
        valid: Bool[Array, "batch new"] | None = None,
    ) -> tuple[Float[Array, "batch new hidden"], Cache]:
        """Normalised hidden states of new tokens, given a cache that they join: a chunk of a prompt, or one token.

        ``valid`` is False for padding, which later tokens never see. For a model built without ``scan``.
        """
        trunk, cache = self.extend_trunk(tokens, positions, cache, valid)
        return self.normed(trunk), cache

    def extend_trunk(
        self,
        tokens: Int[Array, "batch new"],
        positions: Int[Array, "batch new"],
        cache: Cache,
        valid: Bool[Array, "batch new"] | None = None,
    ) -> tuple[Float[Array, "batch new hidden"], Cache]:
        """`extend`, before the final norm."""
        self._check_unscanned()
        x, turned, kept = self._embed(tokens), rotation(self.arch, positions), []
        for i, (layer, memory) in enumerate(zip(self.layers, cache, strict=True)):
            x, memory = layer.extend(x, turned, positions, valid, i, memory)
            kept.append(memory)
        return x, tuple(kept)

    def empty_next_cache(self, batch: int, length: int) -> Any:
        """What the layer of multi-token prediction keeps of no tokens."""
        return self.mtp.layer.empty_cache(batch, length, self.compute_dtype)

    def extend_next(
        self,
        trunk: Float[Array, "batch new hidden"],
        following: Int[Array, "batch new"],
        positions: Int[Array, "batch new"],
        cache: Any,
    ) -> tuple[Float[Array, "batch new hidden"], Any]:
        """`next_hidden` of new positions, given a cache that they join (`empty_next_cache`)."""
        return self.mtp.extend(trunk, self._embed(following), rotation(self.arch, positions), positions, cache)

    def logits(self, hidden: Float[Array, "... hidden"]) -> Float[Array, "... vocab"]:
        """The head, in float32 whatever the compute format (MiniMax-M1, section 3.2)."""
        return hidden.astype(jnp.float32) @ self.head[...].astype(jnp.float32)

    def _embed(self, tokens):
        return constrain(embed(self.embed[...], tokens).astype(self.compute_dtype), _ACTIVATIONS)

    def _check_unscanned(self):
        if self.scan:
            raise ValueError("this model's layers are scanned: build it with scan=False to decode")


def _placed(tokens, positions, segment_ids):
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return positions, jnp.ones_like(tokens) if segment_ids is None else segment_ids


# A loop copies what its backward pass needs into stacks and out again, a quarter of the time of a tiny model's update.
# With so few layers the loop is written out instead.
_FEW_LAYERS = 4


def unstack(weights: nnx.State, arch: Architecture) -> nnx.State:
    """The weights of a scanned model, in the form of the same model without scan."""
    layers = {}
    for stack, stacked in zip(arch.stacks, weights["stacks"].values(), strict=True):
        period = len(stack.pattern)
        for repeat in range(stack.repeats):
            for position, layer in enumerate(stacked.values()):
                one = jax.tree.map(lambda array, repeat=repeat: array[repeat], layer)
                layers[stack.first + repeat * period + position] = one
    return nnx.State({**{name: weights[name] for name in weights if name != "stacks"}, "layers": layers})


def abstract(
    make: Callable[[], Decoder], mesh: Mesh, rules: meshes.Rules = meshes.TRAIN
) -> tuple[nnx.GraphDef, nnx.State]:
    """A model's structure and its weights as shapes with shardings, before any array exists."""
    graph, shapes = nnx.split(nnx.eval_shape(make))

    def place(param: nnx.Variable) -> nnx.Variable:
        leaf = param.get_value()
        where = meshes.sharding(param.logical_axes, leaf.shape, mesh, rules)
        return param.replace(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where))

    return graph, jax.tree.map(place, shapes, is_leaf=lambda x: isinstance(x, nnx.Variable))


def materialise(make: Callable[[], Decoder], weights: nnx.State) -> nnx.State:
    """Initialises the weights straight into their shards; no device ever holds more than its own."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, weights)
    return jax.jit(lambda: nnx.state(make()), out_shardings=shardings)()
