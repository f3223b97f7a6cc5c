"""The kernels at the sizes of the released models, on one chip's share of the experts: what the proofs compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.expert_ffn import expert_ffn
from pallas_kernels.grouped_matmul import Quantized
from pallas_kernels.lightning_attention import lightning_attention
from pallas_kernels.lightning_attention.reference import lightning_step
from pallas_kernels.softmax_attention import latent_attention_step, softmax_attention
from pallas_kernels.token_logprobs import token_logprobs
from pallas_kernels.token_logprobs.slices import slice_columns

ROWS = 65_536  # of routed tokens on a chip
TOKENS = 16_384
CACHED = 8_192  # positions of a sequence that decodes
DECODED = 256  # sequences that decode together


class Family(NamedTuple):
    """Widths as released, and the experts one of 16 chips holds (one of 4 where experts are few).

    ``attention`` is heads, key/value heads, head_dim and value_dim; a family with ``rank`` decodes over latents.
    """

    hidden: int
    ffn: int
    experts: int
    top_k: int
    vocab: int
    attention: tuple[int, int, int, int]
    rank: int = 0
    lightning_heads: int = 0


FAMILIES = {
    "minimax_m2": Family(3072, 1536, 256 // 16, 8, 200_064, (48, 8, 128, 128)),
    "glm_4_6": Family(5120, 1536, 160 // 16, 8, 151_552, (96, 8, 128, 128)),
    "kimi_k2": Family(7168, 2048, 384 // 16, 8, 163_840, (64, 64, 192, 128), rank=512),
    "minimax_m1": Family(6144, 9216, 32 // 4, 2, 200_064, (64, 8, 128, 128), lightning_heads=64),
}


class Case(NamedTuple):
    """A program, the shapes of its arguments, and the least it could compute (FLOPs).

    ``integers``: least and largest + 1 of integer arguments where the time depends on them.
    """

    kernel: str
    mode: str
    run: Callable[..., Any]
    shapes: tuple[Any, ...]
    least_flops: float
    integers: tuple[int, int] | None = None


def cases(family: Family, backend: str = "tpu", rows: int = ROWS) -> Iterator[Case]:
    """Forward, backward (with the forward it needs) and decode of each kernel that the family uses.

    Args:
      backend: "tpu", or "gpu" for those that Hopper has.
      rows: of routed tokens.
    """
    bf16 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    int32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    hidden, ffn, experts, top_k, vocab = family[:5]

    def routed(tokens):
        return bf16(tokens, hidden), int32(tokens, top_k), bf16(tokens, top_k)

    def quantized(shape, dtype, scale, height, width):
        scales: Any = jax.ShapeDtypeStruct((shape[0], shape[1] // height, shape[2] // width), scale)
        values: Any = jax.ShapeDtypeStruct(shape, dtype)
        return Quantized(values, scales)

    matrices = bf16(experts, hidden, ffn), bf16(experts, hidden, ffn), bf16(experts, ffn, hidden)

    def run(*x):
        return expert_ffn(*x, backend=backend)

    def backward(x, chosen, *rest):
        return jax.grad(lambda x, *rest: _sum(run(x, chosen, *rest)), argnums=range(5))(x, *rest)

    flops = 6.0 * rows * hidden * ffn
    train = routed(rows // top_k)
    yield Case("expert_ffn", "forward", run, (*train, *matrices), flops)
    # the gradient needs no product with ``down`` of the forward pass
    yield Case("expert_ffn", "backward", backward, (*train, *matrices), 16 / 6 * flops)
    formats = ("int4", jnp.int4, jnp.bfloat16, 32, 1), ("fp8", jnp.float8_e4m3fn, jnp.float32, 128, 128)
    for name, dtype, scale, height, width in formats if backend == "tpu" else ():
        packed = tuple(quantized(w.shape, dtype, scale, height, width) for w in matrices)
        few = 6.0 * DECODED * top_k * hidden * ffn
        yield Case("expert_ffn", f"decode {name}", run, (*routed(DECODED), *packed), few)

    tokens = bf16(1, TOKENS, hidden), bf16(hidden, vocab), int32(1, TOKENS)

    def found(*x):
        return token_logprobs(*x, backend=backend)

    def slope(hidden, head, targets):
        return jax.grad(lambda *x: found(*x, targets)[0].sum(), argnums=(0, 1))(hidden, head)

    flops = 2.0 * TOKENS * hidden * vocab
    yield Case("token_logprobs", "forward", found, tokens, flops)
    # three products more, by slices of the vocabulary, of which the compiler counts one
    yield Case("token_logprobs", "backward", slope, tokens, flops + 3 * flops * slice_columns(TOKENS, vocab, 2) / vocab)

    if backend == "tpu":
        yield from _softmax_cases(family)
    if heads := family.lightning_heads:
        x, decay = bf16(1, TOKENS, heads, 128), jax.ShapeDtypeStruct((heads,), jnp.float32)

        def attend(q, k, v, decay, segments):
            return lightning_attention(q, k, v, decay, segment_ids=segments, backend=backend)

        def back(q, k, v, *rest):
            return jax.grad(lambda *x: _sum(attend(*x, *rest)[0]), argnums=(0, 1, 2))(q, k, v)

        # q Sᵀ and k vᵀ, twice 128² multiply-adds a token and head; the products inside a chunk come on top
        flops = 4.0 * TOKENS * heads * 128 * 128
        packed = x, x, x, decay, int32(1, TOKENS)
        yield Case("lightning_attention", "forward", attend, packed, flops)
        yield Case("lightning_attention", "backward", back, packed, 4 * flops)
        if backend != "tpu":
            return  # a decode step is plain JAX
        one, state = bf16(DECODED, heads, 128), jax.ShapeDtypeStruct((DECODED, heads, 128, 128), jnp.float32)
        yield Case(
            "lightning_attention",
            "decode",
            lightning_step,
            (one, one, one, decay, state),
            4.0 * DECODED * heads * 128**2,
        )


def _softmax_cases(family: Family) -> Iterator[Case]:
    heads, kv_heads, head_dim, value_dim = family.attention
    bf16 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)  # noqa: E731
    int32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731

    def attend(q, k, v, segments):
        return softmax_attention(q, k, v, scale=head_dim**-0.5, segment_ids=segments, backend="tpu")

    def back(q, k, v, segments):
        return jax.grad(lambda q, k, v: _sum(attend(q, k, v, segments)[0]), argnums=(0, 1, 2))(q, k, v)

    packed = (
        bf16(1, TOKENS, heads, head_dim),
        bf16(1, TOKENS, kv_heads, head_dim),
        bf16(1, TOKENS, kv_heads, value_dim),
        int32(1, TOKENS),
    )
    # the half that causality leaves of one sequence; backwards q·k and g·v again, and the three gradients
    pairs = heads * TOKENS * (TOKENS + 1) / 2
    yield Case("softmax_attention", "forward", attend, packed, 2 * pairs * (head_dim + value_dim), (1, 2))
    yield Case("softmax_attention", "backward", back, packed, 2 * pairs * (4 * head_dim + 3 * value_dim), (1, 2))
    if rank := family.rank:
        width = rank + head_dim - value_dim

        def step(q, cache, positions):
            return latent_attention_step(q, cache, positions, rank=rank, scale=head_dim**-0.5, backend="tpu")

        shapes = bf16(DECODED, heads, width), bf16(DECODED, CACHED, width), int32(DECODED)
        flops = 2.0 * DECODED * CACHED * heads * (width + rank)
        yield Case("latent_attention_step", "decode", step, shapes, flops, (0, CACHED))


def _sum(x):
    return x.astype(jnp.float32).sum()
