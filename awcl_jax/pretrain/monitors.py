"""Monitors of a contrastive encoder in training.

A contrastive loss alone is hard to read: an encoder that maps every frame to one point has a loss of log(rows - 1),
often not far above that of a good one. The monitors distinguish the two.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

# Below this share of the unit sphere's variance, what is left of a covariance is rounding.
_NO_VARIANCE = 1e-10


def spread(z: Float[Array, "v b d"]) -> Float[Array, ""]:
    """Return how far the embeddings spread: 1 when uniform on the sphere, 0 when all are one point.

        spread = sqrt(d) mean_j std(z[:, :, j])

    The standard deviation of each dimension as in Chen & He 2021, "Exploring simple Siamese representation learning",
    Sec. 4.1, here times sqrt(d).

    Args:
      z: unit embeddings of v views of b frames.
    """
    rows = z.reshape(-1, z.shape[-1])
    return jnp.sqrt(z.shape[-1]) * rows.std(axis=0).mean()


def alignment(z: Float[Array, "2 b d"]) -> Float[Array, ""]:
    """Return how far apart the two views of a frame are: 0 when equal, 2 when unrelated, 4 when opposite.

        alignment = mean_i ||z[0, i] - z[1, i]||^2

    Wang & Isola 2020, "Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere", Sec. 4.1.1, with alpha = 2.

    Args:
      z: unit embeddings of two views of b frames.
    """
    return jnp.sum((z[0] - z[1]) ** 2, axis=-1).mean()


def uniformity(z: Float[Array, "v b d"]) -> Float[Array, ""]:
    """Return how evenly the frames cover the sphere: 0 if all are one point, near -4 if uniform in many dimensions.

        uniformity = mean over views of log( mean over i != j of exp(-2 ||z_i - z_j||^2) )

    Wang & Isola 2020, Sec. 4.1.2, with t = 2; as in their code the pairs are of different frames in the same view.

    Args:
      z: unit embeddings of v views of b >= 2 frames.
    """
    v, b, _ = z.shape
    # For unit rows ||x - y||^2 = 2 - 2 x.y. A TPU multiplies in bfloat16 by default.
    cosine = jnp.einsum("vid,vjd->vij", z, z, precision=jax.lax.Precision.HIGHEST)
    others = jnp.broadcast_to(~jnp.eye(b, dtype=bool), (v, b, b))
    return (logsumexp(4 * cosine - 4, axis=(1, 2), where=others) - math.log(b * (b - 1))).mean()


def effective_rank(z: Float[Array, "v b d"]) -> Float[Array, ""]:
    """Return how many dimensions the embeddings use: from 1 to d; 1 also when all are one point.

        effective_rank = exp( -sum_j p_j log p_j ),   p = eigenvalues of the covariance of all v b rows, over their sum

    Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality", Definition 1, of the covariance
    matrix. It cannot exceed the number of rows less one.

    Args:
      z: unit embeddings of v views of b frames.
    """
    rows = z.reshape(-1, z.shape[-1])
    centred = rows - rows.mean(axis=0, keepdims=True)
    covariance = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST) / rows.shape[0]
    eigenvalues = jnp.maximum(jnp.linalg.eigvalsh(covariance), 0)
    total = eigenvalues.sum()
    p = jnp.where(total > _NO_VARIANCE, eigenvalues / jnp.maximum(total, _NO_VARIANCE), 0)
    return jnp.exp(jax.scipy.special.entr(p).sum())


def collapsed_loss(others: int | Int[Array, ""]) -> Float[Array, ""]:
    """Return the contrastive loss, log(others), of an encoder that maps everything to one point.

    Every cosine is then the same and the softmax over the other rows is flat, whatever the temperature and positives.

    Args:
      others: embeddings that an anchor is compared with: of two views of a batch of 32 frames, 63.
    """
    return jnp.log(jnp.asarray(others, jnp.float32))
