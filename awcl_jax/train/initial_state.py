"""The state before the first step: its shapes, and the state itself, computed by a compiled program."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, SingleDeviceSharding
from jaxtyping import Array, PyTree, UInt32

from awcl_jax.runtime import kept_programs, sharding
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
        name: kept_programs.Name | None = None,
    ) -> None:
        """Start the computation; arguments as for `initial_state`.

        Args:
          model, optimiser, seed, queue, given: as for `initial_state`.
          name: what decides model, optimiser and queue; with it, on a CPU, the programs are kept for the next start.
        """
        programs = None if name is None else _KeptPrograms(name)
        with gc_paused():
            if programs is not None and programs.create is not None:
                self.shapes: TrainState = programs.shapes
            else:
                # Both are traced here, and not again when they run.
                self.shapes = state_shapes(model, optimiser, queue=queue)
        self._variables: dict[str, PyTree] | None = None
        aside = ThreadPoolExecutor(1)
        self._made = aside.submit(_made_state, model, optimiser, seed=seed, queue=queue, given=given, programs=programs)
        aside.shutdown(wait=False)

    def wait(self) -> TrainState:
        """Return the state, on the host."""
        return jax.device_get(self._made.result())

    def place(self, mesh: Mesh) -> TrainState:
        """Return the state on a run's devices, for steps that reuse its memory; only its `variables` are kept here.

        Call it once, and `wait` no longer.
        """
        made = self._made.result()
        self._variables = jax.tree.map(np.array, made.variables)
        del self._made
        if sharding.on_cpus(mesh) and jax.process_count() == 1 and _in_memory_of_their_own(made):
            # A step cannot reuse memory that the host refers to as well: the first one would copy the whole state.
            return sharding.replicate(made, mesh)
        return sharding.replicate(jax.device_get(made), mesh)

    @property
    def variables(self) -> dict[str, PyTree]:
        """Parameters and running statistics, on the host."""
        return self.wait().variables if self._variables is None else self._variables


class _KeptPrograms:
    """The two programs that make the state, kept from an earlier start or to be compiled.

    Attributes:
      create: the second program, if it was kept.
      shapes: of what it returns.
    """

    def __init__(self, name: kept_programs.Name) -> None:
        self._names = [{"program": program, "of": name} for program in ("draw", "create")]
        self._devices = jax.local_devices()[:1]
        self.create = kept_programs.load(self._names[1], self._devices, once=True) if self._on_cpu() else None

    @property
    def shapes(self) -> TrainState:
        assert self.create is not None
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.create.out_info)

    def run_draw(self, model: nn.Module, seed: int) -> dict[str, PyTree]:
        if not self._on_cpu():
            return _draw(model, np.uint32(seed))
        lower = partial(_draw.lower, model, np.uint32(seed))
        return kept_programs.load_or_compile(self._names[0], self._devices, lower, once=True)(np.uint32(seed))

    def run_create(
        self, variables: dict[str, PyTree], optimiser: optax.GradientTransformation, queue: Queue | None
    ) -> TrainState:
        if not self._on_cpu():
            return _create(variables, optimiser=optimiser, queue=queue)
        if self.create is None:
            lower = partial(_create.lower, variables, optimiser=optimiser, queue=queue)
            self.create = kept_programs.load_or_compile(self._names[1], self._devices, lower, once=True)
        return self.create(variables, queue=queue)

    def _on_cpu(self) -> bool:
        return self._devices[0].platform == "cpu"


def initial_state(
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    *,
    seed: int,
    queue: Queue | None = None,
    given: Given | None = None,
) -> TrainState:
    """Return the state before the first step, on the host: drawn by the seed, except for what is `given`."""
    # On the host, because the step reuses the memory of its argument.
    return jax.device_get(_made_state(model, optimiser, seed=seed, queue=queue, given=given))


def _made_state(
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    *,
    seed: int,
    queue: Queue | None = None,
    given: Given | None = None,
    programs: _KeptPrograms | None = None,
) -> TrainState:
    """Return `initial_state` on this process's first device."""
    variables = initial_variables(model, seed=seed) if programs is None else programs.run_draw(model, seed)
    if given is not None:
        variables = {name: {**tree, **given.get(name, {})} for name, tree in variables.items()}
    if programs is None:
        return _create(variables, optimiser=optimiser, queue=queue)
    return programs.run_create(variables, optimiser, queue)


def _in_memory_of_their_own(tree: PyTree) -> bool:
    """Return whether no arrays of a device share memory, as those do that a program returns twice."""
    places = [array.unsafe_buffer_pointer() for array in jax.tree.leaves(tree)]
    return len(set(places)) == len(places)


def initial_variables(model: nn.Module, *, seed: int) -> dict[str, PyTree]:
    """Return parameters and running statistics before the first step."""
    return _draw(model, np.uint32(seed))


def state_shapes(model: nn.Module, optimiser: optax.GradientTransformation, *, queue: Queue | None) -> TrainState:
    """Return the shapes and types of the state; nothing is computed."""
    return _create.eval_shape(_draw.eval_shape(model, np.uint32(0)), optimiser=optimiser, queue=queue)


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
