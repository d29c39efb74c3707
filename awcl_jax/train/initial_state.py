"""The state before the first step: its shapes, and the state itself, drawn by a compiled program."""

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


class FirstState:
    """`initial_state`, being made while the caller goes on.

    XLA compiles the programs for it, or reads them, on a core of its own; Python can trace the step meanwhile.

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
        encoder: PyTree | None = None,
    ) -> None:
        """Begin to make it; arguments as of `initial_state`."""
        with gc_paused():
            # Both are traced once, here, and not again to be run.
            variables = _draw.eval_shape(model, np.uint32(seed))
            self.shapes: TrainState = _create.eval_shape(variables, optimiser=optimiser, queue=queue)
        aside = ThreadPoolExecutor(1)
        self._made = aside.submit(initial_state, model, optimiser, seed=seed, queue=queue, encoder=encoder)
        aside.shutdown(wait=False)

    def wait(self) -> TrainState:
        """The state, on the host."""
        return self._made.result()


def initial_state(
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    *,
    seed: int,
    queue: Queue | None = None,
    encoder: PyTree | None = None,
) -> TrainState:
    """The state before the first step, on the host; drawn by the seed but for an encoder that is given."""
    variables = initial_variables(model, seed=seed)
    if encoder is not None:
        variables = {name: {**tree, "encoder": encoder[name]} for name, tree in variables.items()}
    # On the host, for the step reuses the memory of the state that it is given.
    return jax.device_get(_create(variables, optimiser=optimiser, queue=queue))


def initial_variables(model: nn.Module, *, seed: int) -> dict[str, PyTree]:
    """Parameters and running statistics before the first step."""
    return _draw(model, np.uint32(seed))


def shapes_of(model: nn.Module) -> dict[str, PyTree]:
    """Shapes and types of the same on this process's first device, to read them into; nothing is drawn."""
    return on_first_device(_draw.eval_shape(model, np.uint32(0)))


def on_first_device(shapes: PyTree) -> PyTree:
    """The same shapes, of arrays on this process's first device."""
    device = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


def _init(model: nn.Module, seed: UInt32[Array, ""]) -> dict[str, PyTree]:
    # The parameters do not depend on the size of a frame, and a small one is quickly traced.
    return dict(model.init(jax.random.key(seed), jnp.zeros((1, 32, 32, 1)), train=False))


# These run once; LLVM would spend most of a start on the dozens of keys that are drawn from. Operation by operation, a
# state would take as many compilations as it has shapes.
_RUNS_ONCE = {"xla_backend_optimization_level": "1"}
_draw = jax.jit(_init, static_argnums=0, compiler_options=_RUNS_ONCE)
_create = jax.jit(TrainState.create, static_argnames="optimiser", compiler_options=_RUNS_ONCE)
