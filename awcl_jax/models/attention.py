"""Attention over the tokens of a picture."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attend(
    q: Float[Array, "b t2 h d"], k: Float[Array, "b t h d"], v: Float[Array, "b t h d"]
) -> Float[Array, "b t2 h d"]:
    """Return softmax(q k^T / sqrt(d)) v of each head (Vaswani et al. 2017, Eq. 1), with the softmax in float32.

    On a CPU heads are put before tokens first. XLA would otherwise store some operands with tokens innermost, whose
    matrix products and copies take half as long again (XLA of JAX 0.10).

    Args:
      q: queries.
      k: keys.
      v: values.
    """
    if jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(q, k, v)
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    products = jnp.einsum("bhte,bhse->bhts", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(products / jnp.sqrt(jnp.float32(q.shape[-1])), axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bhse->bhte", weights, v).transpose(0, 2, 1, 3)
