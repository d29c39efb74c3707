"""How a step spreads over devices. The only module that names the mesh axis.

A step is written for one device's share of the batch and calls `gather` and `mean` to use the others' values;
`map_step` then runs it on all devices, by `shard_map` or by `pmap`, with the same numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

from awcl_jax.runtime import kept_programs, memory

AXIS = "devices"

MAPPINGS = ("shard_map", "pmap")
# By default XLA (with JAX 0.10) starts whatever can start: it transforms all kernels and fills the results of all loops
# with zeros before the first convolution of a step, which takes more memory and is no faster. Only for one device: with
# several, JAX 0.12 then ends the process in some steps.
_ON_ONE_CPU = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
Step = Callable[[Any, PyTree], tuple[Any, PyTree]]


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Return a one-dimensional mesh of all devices of all processes, or of `devices`."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def on_cpus(mesh: Mesh) -> bool:
    """Return whether the devices are the cores of their hosts."""
    return mesh.devices.flat[0].platform == "cpu"


def gather(tree: PyTree) -> PyTree:
    """Gather the rows of all devices, in global batch order: [b, ...] -> [devices * b, ...]. In a mapped step.

    On a single device this returns the arguments themselves, which a loss can exploit.
    """
    if jax.lax.axis_size(AXIS) == 1:
        return tree
    return jax.tree.map(lambda rows: jax.lax.all_gather(rows, AXIS, tiled=True), tree)


def in_row_order(tree: PyTree, rows: Int[Array, " b"], *, count: int) -> PyTree:
    """Collect the rows of all devices, identical on each and known to be: [b, ...] -> [count, ...]. In a mapped step.

    Args:
      tree: arrays with one entry per row of this device.
      rows: the rows' numbers in the global batch.
      count: number of rows returned, those numbered 0 to `count` - 1, in order.
    """

    def collect(values: Array) -> Array:
        # All terms but one are 0, so the sum is exact.
        placed = jnp.zeros((count, *values.shape[1:]), values.dtype).at[rows].set(values, mode="drop")
        return jax.lax.psum(placed, AXIS)

    return jax.tree.map(collect, tree)


def device_count() -> int:
    """Return the number of devices that share the batch. In a mapped step."""
    return jax.lax.axis_size(AXIS)


def pass_on(tree: PyTree) -> PyTree:
    """Return the previous device's arrays, in a ring of all devices. In a mapped step."""
    count = device_count()
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, [(i, (i + 1) % count) for i in range(count)]), tree)


def vary(tree: PyTree) -> PyTree:
    """Mark a replicated tree as varying over devices, so its gradients are summed only once. In a mapped step."""
    return jax.tree.map(lambda x: jax.lax.pcast(x, AXIS, to="varying"), tree)


def varying_alike(*arrays: Array) -> list[Array]:
    """Mark each array as varying over every mesh axis that any of them varies over, as loops require."""
    varying = [_varying(array) for array in arrays]
    axes = frozenset().union(*varying)
    return [
        jax.lax.pcast(array, tuple(axes - own), to="varying") if axes - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


def mean(tree: PyTree) -> PyTree:
    """Return the mean over devices. In a mapped step.

    Arrays known to be the same on all devices are returned unchanged: `shard_map` has already summed their gradients
    over devices, and a mean would send them a second time. `pmap` does not track this, so it takes every mean.
    """
    known = AXIS in _varying(jax.lax.axis_index(AXIS))
    return jax.tree.map(lambda x: x if known and AXIS not in _varying(x) else jax.lax.pmean(x, AXIS), tree)


def map_step(step: Step, mesh: Mesh, *, via: str = "shard_map", donate: bool = True) -> Step:
    """Run `step(state, batch) -> (state, metrics)` on every device of the mesh at once.

    Args:
      step: body for one device. `state` is replicated, `batch` is the device's share of the leading axis; its result
        must be the same on all devices.
      mesh: the devices.
      via: `shard_map`, or `pmap` for an older toolchain.
      donate: reuse the state's memory for the new state.

    Returns:
      A compiled function of a replicated state and a global batch from `place_batch`.
    """
    if via == "pmap":
        return _pmap_step(step, mesh, donate=donate)
    replicated, sharded = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(replicated, sharded), out_specs=(replicated, replicated))
    options = _ON_ONE_CPU if on_cpus(mesh) and mesh.size == 1 else None
    return jax.jit(mapped, donate_argnums=(0,) if donate else (), compiler_options=options)


def _pmap_step(step: Step, mesh: Mesh, *, donate: bool) -> Step:
    devices = mesh.devices.size
    pmapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=(),
    )
    del donate  # pmap cannot donate an argument that it copies to every device

    def run(state: Any, batch: PyTree) -> tuple[Any, PyTree]:
        split = jax.tree.map(lambda rows: rows.reshape(devices, rows.shape[0] // devices, *rows.shape[1:]), batch)
        return pmapped(state, split)

    return run


def compile_step(
    step: Step, state: PyTree, batch: PyTree, *, mesh: Mesh | None = None, name: kept_programs.Name | None = None
) -> Step:
    """Compile a mapped step before its state exists, so that the first call, with arrays like these, starts at once.

    Args:
      step: from `map_step`; with `pmap` it is compiled at its first call instead.
      state: arrays or `replicated_shapes`.
      batch: from `place_batch`, or `batch_shapes`.
      mesh: the step's devices, with `name`.
      name: what decides the step besides the batch's shapes; with it, on CPUs, the program is kept for the next start.

    Returns:
      The function to call.
    """
    if not isinstance(step, jax.stages.Wrapped):
        return step
    if name is None or mesh is None or not on_cpus(mesh):
        step.lower(state, batch).compile()
        return step
    return kept_programs.load_or_compile(
        step_name(name, batch), list(mesh.devices.flat), lambda: step.lower(state, batch)
    )


def temporary_bytes(step: jax.stages.Compiled) -> int:
    """Return the size of the block that a compiled step allocates and frees again on a device."""
    used = step.memory_analysis()
    return 0 if used is None else used.temp_size_in_bytes


def keep_place(step: Step) -> Step:
    """Give a compiled step's memory one place for all its calls, in a process that keeps its pages.

    What compiling left is returned to the system. Call this last before the steps, because what is allocated later may
    be put into the place.
    """
    if not isinstance(step, jax.stages.Compiled):
        memory.return_freed_pages()
        return step
    size = temporary_bytes(step)
    memory.return_freed_pages()  # asking for the size leaves some, too
    place = memory.Place(size)

    def run(state: Any, batch: PyTree) -> tuple[Any, PyTree]:
        place.prepare()
        return step(state, batch)

    return run


def step_name(name: kept_programs.Name, batch: dict[str, Any]) -> kept_programs.Name:
    """Return the name of a step's program, for a batch of such shapes and types."""
    return {"program": "step", "of": name, "batch": {key: [list(x.shape), str(x.dtype)] for key, x in batch.items()}}


def batch_shapes(shapes: dict[str, tuple[list[int], str]], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes, types and placement of what `place_batch` returns, from the shapes of the whole batch."""
    placement = rows_over_devices(mesh)
    return {
        key: jax.ShapeDtypeStruct(tuple(shape), np.dtype(kind), sharding=placement)
        for key, (shape, kind) in shapes.items()
    }


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copy the arrays to every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated_shapes(tree: PyTree, mesh: Mesh) -> PyTree:
    """Return the shapes, types and placement of what `replicate` returns, without copying."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)


def local_copy(tree: PyTree) -> PyTree:
    """Return a replicated tree as arrays of this process alone, without the other processes' devices."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def rows_over_devices(mesh: Mesh) -> NamedSharding:
    """Return the placement of an array whose leading axis is split over the mesh."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def place_batch(local: PyTree, mesh: Mesh) -> PyTree:
    """Turn this process's rows of a batch into global arrays, split over the devices by their leading axis."""
    sharding = rows_over_devices(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), local)


def _varying(array: Array) -> frozenset[str]:
    """Return the mesh axes over which an array is known to vary."""
    return jax.typeof(array).manual_axis_type.varying
