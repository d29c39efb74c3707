"""How a step spreads over devices. The only module that names the mesh axis.

A step is written for one device's share of the batch and calls `gather` and `mean` for what it needs of the others;
`map_step` then runs it on all of them, by `shard_map` or by `pmap`, with the same numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree

AXIS = "devices"

MAPPINGS = ("shard_map", "pmap")
Step = Callable[[Any, PyTree], tuple[Any, PyTree]]


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """All devices of all processes (or those given) in one line."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def on_cpus(mesh: Mesh) -> bool:
    """Whether the devices are the cores of their hosts."""
    return mesh.devices.flat[0].platform == "cpu"


def gather(tree: PyTree) -> PyTree:
    """Rows of all devices, in the order of the global batch: [b, ...] -> [devices * b, ...]. Inside a mapped step.

    On a single device these are the very arrays that were given, so that a loss can make use of it.
    """
    if jax.lax.axis_size(AXIS) == 1:
        return tree
    return jax.tree.map(lambda rows: jax.lax.all_gather(rows, AXIS, tiled=True), tree)


def in_row_order(tree: PyTree, rows: Int[Array, " b"], *, count: int) -> PyTree:
    """Rows of all devices, the same on each and known to be so: [b, ...] -> [count, ...]. Inside a mapped step.

    Args:
      tree: arrays with an entry for each of this device's rows.
      rows: the rows' numbers in the global batch.
      count: rows with lower numbers are given, each at the place of its number.
    """

    def collect(values: Array) -> Array:
        # All but one of the terms are 0, so that the sum is exact.
        placed = jnp.zeros((count, *values.shape[1:]), values.dtype).at[rows].set(values, mode="drop")
        return jax.lax.psum(placed, AXIS)

    return jax.tree.map(collect, tree)


def device_count() -> int:
    """Devices that share the batch. Inside a mapped step."""
    return jax.lax.axis_size(AXIS)


def pass_on(tree: PyTree) -> PyTree:
    """What the device before has, in a ring of all devices. Inside a mapped step."""
    count = device_count()
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, [(i, (i + 1) % count) for i in range(count)]), tree)


def vary(tree: PyTree) -> PyTree:
    """A replicated tree as each device's own, whose gradients are summed over devices once. Inside a mapped step."""
    return jax.tree.map(lambda x: jax.lax.pcast(x, AXIS, to="varying"), tree)


def varying_alike(*arrays: Array) -> list[Array]:
    """The arrays, each varying over whatever mesh axes any of them varies over, as loops and kernels want them."""
    varying = [_varying(array) for array in arrays]
    axes = frozenset().union(*varying)
    return [
        jax.lax.pcast(array, tuple(axes - own), to="varying") if axes - own else array
        for array, own in zip(arrays, varying, strict=True)
    ]


def mean(tree: PyTree) -> PyTree:
    """Mean over devices. Inside a mapped step.

    What is known to be the same on all devices is given back as it is: `shard_map` has then summed a gradient over
    devices already, and its mean would send all of it a second time. `pmap` knows of no array, and takes every mean.
    """
    known = AXIS in _varying(jax.lax.axis_index(AXIS))
    return jax.tree.map(lambda x: x if known and AXIS not in _varying(x) else jax.lax.pmean(x, AXIS), tree)


def map_step(step: Step, mesh: Mesh, *, via: str = "shard_map", donate: bool = True) -> Step:
    """Run `step(state, batch) -> (state, metrics)` on every device of the mesh at once.

    Args:
      step: body for one device. `state` comes whole, `batch` as the device's share of the leading axis; what it returns
        must be the same on all devices.
      mesh: the devices.
      via: `shard_map`, or `pmap` where an older toolchain asks for it.
      donate: reuse the state's memory for the new state.

    Returns:
      A compiled function of a replicated state and a global batch from `place_batch`.
    """
    if via == "pmap":
        return _pmap_step(step, mesh, donate=donate)
    replicated, sharded = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(replicated, sharded), out_specs=(replicated, replicated))
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())


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


def compile_step(step: Step, state: PyTree, batch: PyTree) -> None:
    """Compile a mapped step before its state is there: the first call, with arrays like these, then begins at once.

    Args:
      step: of `map_step`; one that goes by `pmap` is left to its first call.
      state: arrays or `replicated_shapes`.
      batch: from `place_batch`.
    """
    if isinstance(step, jax.stages.Wrapped):
        step.lower(state, batch).compile()


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """The same arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated_shapes(tree: PyTree, mesh: Mesh) -> PyTree:
    """Shapes, types and placement of what `replicate` gives; nothing is copied."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)


def local_copy(tree: PyTree) -> PyTree:
    """A replicated tree as this process's own arrays, free of the other processes' devices."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


def rows_over_devices(mesh: Mesh) -> NamedSharding:
    """Placement of an array whose leading axis is spread over the mesh."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def place_batch(local: PyTree, mesh: Mesh) -> PyTree:
    """This process's rows of a batch -> global arrays, spread over the devices by their leading axis."""
    sharding = rows_over_devices(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), local)


def _varying(array: Array) -> frozenset[str]:
    """Mesh axes over which an array is known to vary."""
    return jax.typeof(array).manual_axis_type.varying
