"""Read arrays from a file saved by PyTorch, without PyTorch and without running any code in it.

`torch.save` writes a ZIP archive: `data.pkl`, a pickle of the dictionaries, and beside it `data/KEY`, the bytes of each
storage that tensors are views of. A pickle can name any function of any module and have it called. Here a name must be
one of the few below, otherwise the file is refused; nothing is ever imported.
"""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from awcl_jax.runtime.errors import InputError, first_line

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

_REMEDY = "save only the weights, with torch.save(model.state_dict(), FILE) or as safetensors"


def read_torch_zip(path: Path) -> dict[Any, Any]:
    """Return the dictionary in a file of `torch.save`: names to arrays, numbers, text or further dictionaries.

    Args:
      path: the file, in the format of PyTorch 1.6 (2020) or later.

    Returns:
      The dictionary; tensors as read-only arrays, bfloat16 ones as `jax.numpy.bfloat16`.

    Raises:
      InputError: the file is not such an archive, is damaged, or has other content, such as a complete model.
      OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise InputError(
                f"{path} is not in the torch.save format of PyTorch 1.6 or later. Load it in PyTorch with "
                "torch.load(FILE, weights_only=True) and save it again."
            )
        try:
            with zipfile.ZipFile(file) as archive:
                content = _Reader(archive, path).load()
        except InputError:
            raise
        except (pickle.UnpicklingError, zipfile.BadZipFile, *_DAMAGES) as error:
            raise InputError(f"{path} is damaged ({first_line(error)}). Download it again, or {_REMEDY}.") from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path} must have a dictionary of weights; got {type(content).__name__}. To fix it, {_REMEDY}."
        )
    return content


# The unpickler raises these for a truncated or modified pickle.
_DAMAGES = (EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)


class _Inert:
    """Something that a file may name and call. A state set by the file (pickle's BUILD) is ignored."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


class _Names(_Inert, dict):
    """An OrderedDict of the file; PyTorch adds version numbers to it as a state."""

    __slots__ = ()


class _Tensor(_Inert):
    """`torch._utils._rebuild_tensor_v2`: a view of a storage."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        """Return the array; offset and strides count numbers, not bytes."""
        plain = isinstance(storage, np.ndarray) and storage.ndim == 1 and storage.flags.c_contiguous
        if not plain or not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)):
            raise pickle.UnpicklingError(f"a tensor of shape {size} and strides {stride}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= storage.size:
            # as_strided does not check this, and would read beyond the storage in memory.
            raise pickle.UnpicklingError(f"a tensor of {last + 1} numbers in a storage of {storage.size}")
        steps = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


class _Parameter(_Inert):
    """`torch._utils._rebuild_parameter`: the tensor that it wraps."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        """Return the tensor."""
        return tensor


_KNOWN = {
    ("collections", "OrderedDict"): _Names,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor(),
    ("torch._utils", "_rebuild_parameter"): _Parameter(),
    **{("torch", name): name for name in _STORAGES},
}


class _Reader(pickle.Unpickler):
    """Unpickles `data.pkl` of an archive."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise InputError(
                f"{path} is a ZIP archive but not of torch.save: it has no data.pkl. To fix it, {_REMEDY}."
            )
        super().__init__(io.BytesIO(archive.read(pickles[0])))
        self._archive, self._path = archive, path
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in archive.namelist() and archive.read(f"{self._root}byteorder") != b"little":
            raise InputError(f"{path} was saved on a big-endian machine, which is not supported. Instead, {_REMEDY}.")

    def find_class(self, module: str, name: str) -> Any:
        """Return the meaning of a name in the pickle."""
        if (module, name) not in _KNOWN:
            raise InputError(
                f"{self._path} has {module}.{name}, which is not part of weights; nothing in the file was run. If you "
                f"trust it, {_REMEDY}."
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Return the numbers of a storage, from ("storage", type, key, device, count)."""
        kind, storage, key, _, count = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"a reference to {kind!r}")
        values = np.frombuffer(self._archive.read(f"{self._root}data/{key}"), _STORAGES[storage])
        if values.size != count:
            raise pickle.UnpicklingError(f"storage {key} must have {count} numbers; got {values.size}")
        return values
