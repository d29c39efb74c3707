"""The optimiser: Adam, AdamW or LARS with warm-up, cosine decay and clipping."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from awcl_jax.runtime.errors import InputError

OPTIMISERS = ("adam", "adamw", "lars", "sgd")
SCHEDULES = ("cosine", "constant")

_TABLES = ("pos_embed", "reg_token")  # of a vision transformer: of two or more axes, and no kernels


def learning_rate_schedule(*, peak: float, steps: int, warmup_steps: int, schedule: str = "cosine") -> optax.Schedule:
    """Return a linear warm-up to `peak`, then a cosine to 0 at `steps` (Loshchilov & Hutter 2017), or constant.

    Raises:
      InputError: the warm-up is as long as the run, or the schedule is none of `SCHEDULES`.
    """
    if warmup_steps >= steps and warmup_steps > 0:
        raise InputError(f"Warm-up takes {warmup_steps} steps of a run of {steps}. Shorten it or train longer.")
    if schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0 if warmup_steps else peak, peak, warmup_steps, steps)
    if schedule == "constant":
        return optax.join_schedules(
            [optax.linear_schedule(0.0, peak, max(warmup_steps, 1)), optax.constant_schedule(peak)], [warmup_steps]
        )
    raise InputError(f"Unknown schedule {schedule!r}; must be one of cosine, constant.")


def make_optimiser(
    name: str,
    *,
    learning_rate: optax.Schedule,
    weight_decay: float = 0.0,
    decay_all: bool = False,
    clip_norm: float | None = None,
    momentum: float = 0.9,
) -> optax.GradientTransformation:
    """Make an optimiser by name.

    Args:
      name: `adam` (weight decay added to the gradient, as in PyTorch's Adam), `adamw` (decoupled), `lars` or `sgd`.
      learning_rate: by step.
      weight_decay: strength of the decay.
      decay_all: decay biases, normalisation, tokens and positions as well; by default only kernels (other arrays of
        two or more axes) decay.
      clip_norm: longest gradient norm, None for no clipping.
      momentum: of LARS and SGD.

    Raises:
      InputError: unknown name.
    """

    def decayed(params: PyTree) -> PyTree:
        return _by_path(lambda path, p: decay_all or (p.ndim > 1 and path[-1] not in _TABLES), params)

    decay = optax.add_decayed_weights(weight_decay, mask=decayed)
    chains = {
        "adam": lambda: optax.chain(decay, optax.adam(learning_rate)),
        "adamw": lambda: optax.adamw(learning_rate, weight_decay=weight_decay, mask=decayed),
        "lars": lambda: optax.lars(
            learning_rate, weight_decay, weight_decay_mask=decayed, trust_ratio_mask=decayed, momentum=momentum
        ),
        "sgd": lambda: optax.chain(decay, optax.sgd(learning_rate, momentum=momentum)),
    }
    if name not in chains:
        raise InputError(f"Unknown optimiser {name!r}; must be one of {', '.join(chains)}.")
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity()
    return optax.chain(clip, chains[name]())


def train_all_but(optimiser: optax.GradientTransformation, frozen: str) -> optax.GradientTransformation:
    """Return the same optimiser, but freeze the parameters of one module: no gradient, no decay."""

    def kinds(params: PyTree) -> PyTree:
        return {
            module: jax.tree.map(lambda _, kind="frozen" if module == frozen else "trained": kind, part)
            for module, part in params.items()
        }

    return optax.multi_transform({"trained": optimiser, "frozen": optax.set_to_zero()}, kinds)


def freeze(
    optimiser: optax.GradientTransformation, frozen: Callable[[tuple[str, ...]], bool]
) -> optax.GradientTransformation:
    """Return the same optimiser, but freeze some parameters: no gradient, no decay, no state.

    Args:
      optimiser: of the others.
      frozen: whether the parameter of a path, such as ("encoder", "pos_embed"), is frozen.
    """

    def kinds(params: PyTree) -> PyTree:
        return _by_path(lambda path, _: "frozen" if frozen(path) else "trained", params)

    return optax.multi_transform({"trained": optimiser, "frozen": optax.set_to_zero()}, kinds)


def scale_updates(
    optimiser: optax.GradientTransformation, factor: Callable[[tuple[str, ...]], float]
) -> optax.GradientTransformation:
    """Return the same optimiser with a factor on the learning rate of each parameter, by its path."""
    scale = optax.stateless(lambda updates, _: _by_path(lambda path, update: factor(path) * update, updates))
    return optax.chain(optimiser, scale)


def _by_path(function: Callable[[tuple[str, ...], Array], Any], params: PyTree) -> PyTree:
    """Apply a function of (path, array) to all parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, p: function(tuple(key.key for key in path), p), params)


@jax.named_scope("norm")
def global_norm(tree: PyTree) -> Float[Array, ""]:
    """Return the Euclidean norm of all numbers of a tree of real arrays.

    (`optax.tree.norm` also squares imaginary parts, which doubles the tracing at a start.)
    """
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))
