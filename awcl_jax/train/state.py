"""The state that a training run carries from step to step."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from awcl_jax.train.momentum import Momentum, Queue


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; together with the config and the data it determines the rest of the run.

    Attributes:
      step: number of steps taken, an int32 scalar.
      params: parameters, by module (`encoder`, `projection`).
      batch_stats: running statistics of batch norm.
      opt_state: the optimiser's state.
      momentum: the momentum encoder and its queue (`Momentum`), None if the method has none.
    """

    step: Any
    params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    momentum: Any = None

    @classmethod
    def create(
        cls, variables: dict[str, PyTree], optimiser: optax.GradientTransformation, *, queue: Queue | None = None
    ) -> "TrainState":
        """Return the state before the first step, from a model's initial variables; a queue adds a momentum encoder."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimiser.init(variables["params"]),
            momentum=None if queue is None else Momentum.create(variables, queue),
        )

    @jax.named_scope("update")
    def update(
        self,
        *,
        grads: PyTree,
        batch_stats: PyTree,
        optimiser: optax.GradientTransformation,
        momentum: Momentum | None = None,
        where: Bool[Array, ""] | bool = True,
    ) -> "TrainState":
        """Return the state after a step with these gradients; if `where` is False, only the step count changes."""
        updates, opt_state = optimiser.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        new = TrainState(self.step, params, batch_stats, opt_state, momentum)
        # Not jnp.where, whose tracing adds half a second to the start of a ResNet.
        kept = jax.tree.map(partial(jax.lax.select, jnp.asarray(where)), new, self)
        return kept.replace(step=self.step + 1)

    @property
    def variables(self) -> dict[str, PyTree]:
        """Parameters and running statistics, as the model expects them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def parameter_count(params: PyTree) -> int:
    """Count the trained numbers."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
