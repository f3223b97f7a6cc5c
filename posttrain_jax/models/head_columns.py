"""Where QK-Clip takes hold of each kind of attention."""

from __future__ import annotations

from posttrain_jax.models.architecture import Architecture
from posttrain_jax.optim.muonclip import HeadColumns


def head_columns(arch: Architecture) -> dict[str, HeadColumns]:
    """The weights of an attention whose scaling scales a head's logits by γ, by their names.

    * Latent attention, exactly as published (Kimi K2, arXiv 2507.20534, section 2.1): √γ on the parts of queries and
      keys without position, γ on the rotated queries; the rotated key, which all heads share, is not touched.
    * Grouped queries: γ on the queries alone, with their bias, because other heads share their keys. The report does
      not treat this case; the form is ours.
    * Queries behind a norm forget the size of their weights, so there γ goes to the norm's gain: head by head where the
      gain is, and by the smallest γ where all heads share one gain.
    """
    if arch.kv_rank:
        plain, rotated = arch.head_dim - arch.rotary_dim, arch.rotary_dim
        return {
            "q": HeadColumns((0.5,) * plain + (1.0,) * rotated),
            "kv": HeadColumns((0.5,) * plain + (0.0,) * arch.value_dim),
        }
    whole = HeadColumns((1.0,) * arch.head_dim, shared=arch.qk_norm == "head")
    if arch.qk_norm != "none":
        return {"q_norm": whole}
    return {"q": whole, "q_bias": whole} if arch.attention_bias else {"q": whole}
