"""Which form of a kernel runs: chosen by the device, or named by the caller."""

from __future__ import annotations

import difflib
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import tiles


def choose(kernel: str, backend: str | None, why_not: dict[str, str | None]) -> str:
    """The form to run: ``backend`` if given, else the attached device's own form where it takes the shapes, else "xla".

    Args:
      kernel: name for messages.
      backend: "tpu", "gpu", "xla", another name in ``why_not``, or None to choose.
      why_not: for each form there is, why it cannot take these arguments, or None if it can.

    Raises:
      ValueError: an unknown form, or a named one that cannot take the arguments; says why.
    """
    if backend is None:
        native = device_form()
        return native if why_not.get(native, "absent") is None else "xla"
    if backend not in why_not:
        near = difflib.get_close_matches(backend, why_not, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{kernel}: backend={backend!r} is not one of {', '.join(map(repr, why_not))}{hint}")
    if (reason := why_not[backend]) is not None:
        raise ValueError(f"{kernel}: backend={backend!r} cannot run this: {reason}; backend='xla' can")
    return backend


def device_form() -> str:
    """ "tpu" on TPUs, "gpu" on NVIDIA Hopper, else "xla".

    A kernel works on the arrays of one device. With several and no ``shard_map`` around, XLA splits the work, and only
    the "xla" form can be split. Under ``tiles.compiling_for`` the chip named there is the device.
    """
    named = tiles.named_chip()
    if named is not None:
        return "tpu" if named.startswith(("v", "tpu")) else "xla"
    device = jax.devices()[0]
    if jax.device_count() > 1 and not jax.sharding.get_abstract_mesh().manual_axes:
        return "xla"
    if device.platform == "tpu":
        return "tpu"
    hopper = device.platform == "gpu" and getattr(device, "compute_capability", "") == "9.0"
    return "gpu" if hopper else "xla"


def exact(dtype: Any) -> jax.lax.Precision:
    """The precision with which a kernel's products of ``dtype`` with float32 sums lose nothing, whatever JAX's default.

    float32 takes several passes of a matrix unit. Products of 16 bits are exact in one; Mosaic refuses to make more.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT
