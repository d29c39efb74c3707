"""Functions between the layers of vision transformers."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.custom_jvp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x Phi(x), with Phi the normal distribution's (Hendrycks & Gimpel 2016, section 2), not approximated.

    Its derivative is written out, because JAX 0.12 cannot differentiate erf and erfc within `jax.shard_map`.
    """
    return jax.nn.gelu(x, approximate=False)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Return value and tangent: the derivative is Phi(x) + x phi(x)."""
    (x,), (tangent,) = primals, tangents
    distribution = 0.5 * jax.lax.erfc(-x * np.sqrt(0.5).astype(x.dtype))
    density = jnp.exp(-0.5 * x * x) * np.sqrt(0.5 / np.pi).astype(x.dtype)
    return gelu(x), tangent * (distribution + x * density)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
