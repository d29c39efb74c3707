"""The peak of a machine for matrix products, measured: products of random numbers, large enough for the device.

The numbers are random because a GPU multiplies zeros and ones in less time and power than data.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

_EDGES = {"cpu": 2048, "accelerator": 8192}
_PRODUCTS = {"cpu": 1, "accelerator": 8}  # started before one wait, so that the time of starting them does not count


@dataclasses.dataclass(frozen=True)
class Product:
    """Matrix products.

    Attributes:
      run: computes them and waits for the device.
      operations: additions and multiplications of a call.
    """

    run: Callable[[], object]
    operations: float

    def rates(self, repeats: int) -> list[float]:
        """Return operations a second of `repeats` calls, after one to warm up."""
        self.run()
        return [self.operations / seconds(self.run) for _ in range(repeats)]


def jax_product(dtype: Any, *, precision: str | None = None, edge: int | None = None) -> Product:
    """Return products on JAX's default device.

    Args:
      dtype: of both matrices.
      precision: as of `jnp.matmul`.
      edge: rows and columns; by default as large as suits the device.
    """
    import jax
    import jax.numpy as jnp

    kind = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    edge = edge or _EDGES[kind]
    a, b = (jax.random.normal(key, (edge, edge), dtype) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(functools.partial(jnp.matmul, precision=precision))
    return _repeated(lambda: product(a, b), jax.block_until_ready, _PRODUCTS[kind], edge)


def torch_product(dtype: str, device: str) -> Product:
    """Return products of PyTorch.

    Args:
      dtype: of both matrices, such as `bfloat16`.
      device: `cpu` or `cuda`.
    """
    import torch

    kind = "cpu" if device == "cpu" else "accelerator"
    edge = _EDGES[kind]
    a, b = (torch.randn(edge, edge, device=device).to(getattr(torch, dtype)) for _ in range(2))

    def wait(_: object) -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    return _repeated(lambda: a @ b, wait, _PRODUCTS[kind], edge)


def seconds(call: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _repeated(product: Callable[[], object], wait: Callable[[Any], object], count: int, edge: int) -> Product:
    def run() -> None:
        for _ in range(count):
            result = product()
        wait(result)

    return Product(run, count * 2.0 * edge**3)
