"""The step of decoding over the latent cache of MLA, in the absorbed form (DeepSeek-V2, arXiv 2405.04434, 2.1).

With the expansion of keys moved into the query and that of values out of the result, all heads share one key a token,
and its first ``rank`` numbers are the value too: a kernel reads the cache once.
"""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from pallas_kernels.backends import choose
from pallas_kernels.softmax_attention import tpu_latent
from pallas_kernels.softmax_attention.reference import latent_step_definition
from pallas_kernels.softmax_attention.xla import cached_attention


def latent_attention_step(
    q: Float[Array, "batch heads width"],
    cache: Float[Array, "batch length width"],
    positions: Int[Array, " batch"],
    *,
    rank: int,
    scale: float,
    backend: str | None = None,
) -> Float[Array, "batch heads rank"]:
    """softmax(scale · q·c) c[:rank] over the cached latents c at positions up to the query's own.

    The kernel is for decoding and has no gradient.

    Args:
      q: one query a sequence and head, expanded into the latent space, the rotated part last.
      cache: a latent and a rotated key for each position, the query's own included.
      positions: of the queries; what lies in the cache beyond is not looked at.
      rank: numbers of the latent, which are the values.
      backend: "tpu", "xla", "definition"; None chooses by the device.

    Raises:
      ValueError: an unknown backend, or one that cannot take the shapes.
    """
    why_not = {"xla": None, "tpu": tpu_latent.why_not(q, cache, rank), "definition": None}
    backend = choose("latent_attention_step", backend, why_not)
    if backend == "definition":
        return latent_step_definition(q, cache, positions, rank=rank, scale=scale)
    if backend == "tpu":
        return tpu_latent.step(q, cache, positions, rank=rank, scale=scale)
    keys, values = cache.swapaxes(1, 2)[:, None], cache[:, None, :, :rank]
    return cached_attention(q[:, None], keys, values, positions[:, None], scale=scale)[:, 0]
