"""The state before the first step: its shapes, and the state itself, computed by a compiled program."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, PyTree, UInt32

from awcl_jax.runtime.memory import gc_paused
from awcl_jax.train.momentum import Queue
from awcl_jax.train.state import TrainState

Given = Mapping[str, Mapping[str, PyTree]]
"""`params` and `batch_stats` -> module, such as `encoder` -> its variables, which replace those drawn."""


class FirstState:
    """`initial_state`, computed in a thread while the caller continues.

    XLA compiles its programs, or reads them, on another core; meanwhile Python can trace the step.

    Attributes:
      shapes: of the state, known at once.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: optax.GradientTransformation,
        *,
        seed: int,
        queue: Queue | None = None,
        given: Given | None = None,
    ) -> None:
        """Start the computation; arguments as for `initial_state`."""
        with gc_paused():
            # Both are traced here, and not again when they run.
            variables = _draw.eval_shape(model, np.uint32(seed))
            self.shapes: TrainState = _create.eval_shape(variables, optimiser=optimiser, queue=queue)
        aside = ThreadPoolExecutor(1)
        self._made = aside.submit(initial_state, model, optimiser, seed=seed, queue=queue, given=given)
        aside.shutdown(wait=False)

    def wait(self) -> TrainState:
        """Return the state, on the host."""
        return self._made.result()


def initial_state(
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    *,
    seed: int,
    queue: Queue | None = None,
    given: Given | None = None,
) -> TrainState:
    """Return the state before the first step, on the host: drawn by the seed, except for what is `given`."""
    variables = initial_variables(model, seed=seed)
    if given is not None:
        variables = {name: {**tree, **given.get(name, {})} for name, tree in variables.items()}
    # On the host, because the step reuses the memory of its argument.
    return jax.device_get(_create(variables, optimiser=optimiser, queue=queue))


def initial_variables(model: nn.Module, *, seed: int) -> dict[str, PyTree]:
    """Return parameters and running statistics before the first step."""
    return _draw(model, np.uint32(seed))


def shapes_of(model: nn.Module) -> dict[str, PyTree]:
    """Return their shapes and types on this process's first device, to restore into; nothing is computed."""
    return on_first_device(_draw.eval_shape(model, np.uint32(0)))


def on_first_device(shapes: PyTree) -> PyTree:
    """Place the same shapes on this process's first device."""
    device = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


def _init(model: nn.Module, seed: UInt32[Array, ""]) -> dict[str, PyTree]:
    # The parameters do not depend on the size of a frame, and a small one traces quickly: 32 pixels, or two patches.
    edge = 2 * getattr(getattr(model, "encoder", None), "patch", 16)
    return dict(model.init(jax.random.key(seed), jnp.zeros((1, edge, edge, 1)), train=False))


# These run once; at full optimisation LLVM would spend most of a start on their dozens of random keys. Without jit, a
# state would need one compilation for each of its shapes.
_RUNS_ONCE = {"xla_backend_optimization_level": "1"}
_draw = jax.jit(_init, static_argnums=0, compiler_options=_RUNS_ONCE)
_create = jax.jit(TrainState.create, static_argnames="optimiser", compiler_options=_RUNS_ONCE)
