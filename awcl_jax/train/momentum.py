"""A momentum encoder and a queue of its keys, as in MoCo v2; AWCL can use them, too.

The queue holds the embeddings of earlier batches, so that an anchor is compared with more rows than a batch has. They
come from an encoder whose parameters follow the trained one slowly, so keys of different age stay comparable. Each key
keeps its labels, so that a labelled anchor finds positives in the queue, too.

    He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020.
    Chen et al., Improved Baselines with Momentum Contrastive Learning, arXiv 2003.04297.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.losses.awcl import ABSENT, groups_from_labels


@flax.struct.dataclass
class Queue:
    """The last q keys, the oldest first.

    Attributes:
      z: [q, d] unit embeddings, 0 for a place still empty.
      frame: [q] frame of each key, ABSENT for a place still empty.
      label: [q] or [q, m] the labels of that frame.
    """

    z: Any
    frame: Any
    label: Any

    @classmethod
    def empty(cls, size: int, embedding: int, *, columns: tuple[int, ...] = ()) -> "Queue":
        """Return a queue without keys; `columns` is () for one label per frame, (m,) for m."""
        return cls(
            z=jnp.zeros((size, embedding), jnp.float32),
            frame=jnp.full(size, ABSENT, jnp.int32),
            label=jnp.full((size, *columns), UNLABELLED, jnp.int32),
        )

    def push(self, z: Float[Array, "b d"], frame: Int[Array, " b"], label: Array) -> "Queue":
        """Return the queue with b new keys at the end, without its b oldest."""
        assert len(z) <= len(self.z), "the queue must be at least as long as a batch"

        def shift(old: Array, new: Array) -> Array:
            return jnp.concatenate([old[len(new) :], new.astype(old.dtype)])

        return Queue(shift(self.z, z), shift(self.frame, frame), shift(self.label, label))

    def contrast(self, batch_size: int) -> tuple[Int[Array, " q"], Array]:
        """Return ids and groups for `awcl_loss`, where an anchor's id is its frame's number.

        The last `batch_size` keys are of this batch: none is left out, because a frame's key is its positive. Older
        keys of the anchor's frame are left out: they are not negatives, and would be stale as positives. An older key
        without a label is a positive of no anchor.
        """
        older = len(self.frame) - batch_size
        rows = jnp.arange(batch_size, dtype=jnp.int32)
        ids = self.frame.at[older:].set(-1 - rows)
        earlier = jnp.where(self.label[:older] == UNLABELLED, ABSENT, self.label[:older])
        return ids, jnp.concatenate([earlier, groups_from_labels(self.label[older:], rows)])

    @property
    def filled(self) -> Int[Array, ""]:
        """Number of keys."""
        return (self.frame != ABSENT).sum()


@flax.struct.dataclass
class Momentum:
    """The state of a step with a queue, beside the trained encoder.

    Attributes:
      params: of the momentum encoder.
      batch_stats: its running statistics.
      queue: its keys.
    """

    params: PyTree
    batch_stats: PyTree
    queue: Queue

    @classmethod
    def create(cls, variables: dict[str, PyTree], queue: Queue) -> "Momentum":
        """Return a momentum encoder equal to the trained one, with an empty queue."""
        copy = jax.tree.map(jnp.array, variables)  # the step reuses the memory of its argument
        return cls(params=copy["params"], batch_stats=copy.get("batch_stats", {}), queue=queue)

    def follow(self, params: PyTree, coefficient: float) -> PyTree:
        """Return the parameters m old + (1 - m) trained, for the coefficient m."""
        return optax.incremental_update(params, self.params, 1 - coefficient)
