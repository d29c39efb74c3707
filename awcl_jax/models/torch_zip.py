"""Read arrays from a file saved by PyTorch, without PyTorch and without running any code in it.

`torch.save` writes a ZIP archive: `data.pkl`, a pickle of the dictionaries, and beside it `data/KEY`, the bytes of each
storage that tensors are views of. A pickle can name any function of any module and have it called. Here a name must be
one of the few below, otherwise the file is refused; nothing is ever imported.

A small pickle can also ask for any amount of memory or time, so it is checked before it is read: its size, its opcodes,
their places in the memo, and its keys.
"""

import io
import math
import pickle
import pickletools
import reprlib
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

_LARGEST_PICKLE = 2**24  # bytes; that of a ResNet-50 has 50,000
_QUOTED = 200  # characters of a file in a message
_MOST_AXES = 32
# Text, numbers, tuples, lists, dictionaries, references: what PyTorch writes; and objects (NEWOBJ), of which `_KNOWN`
# has one kind. No sets, buffers or extensions.
_OPCODES = frozenset(
    [
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "POP",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "INT",
        "LONG",
        "LONG1",
        "BININT",
        "BININT1",
        "BININT2",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINBYTES",
        "SHORT_BINBYTES",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_LIST",
        "LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_DICT",
        "DICT",
        "SETITEM",
        "SETITEMS",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "MEMOIZE",
        "GET",
        "BINGET",
        "LONG_BINGET",
        "GLOBAL",
        "STACK_GLOBAL",
        "REDUCE",
        "NEWOBJ",
        "BUILD",
        "BINPERSID",
    ]
)

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
            raise InputError(
                f"{path} is damaged ({first_line(error)[:_QUOTED]}). Download it again, or {_REMEDY}."
            ) from None
    if not isinstance(content, dict):
        raise InputError(
            f"{path} must have a dictionary of weights; got {type(content).__name__}. To fix it, {_REMEDY}."
        )
    return content


# The unpickler raises these for a truncated or modified pickle.
_DAMAGES = (EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)


def _quoted(value: object) -> str:
    """Return the beginning of a value of the file, whatever its size and depth."""
    short = reprlib.Repr()
    short.maxlevel = 2
    return short.repr(value)[:_QUOTED]


def _check_opcodes(pickled: bytes) -> None:
    """Check that reading a pickle takes time and memory in proportion to its size.

    Raises:
      pickle.UnpicklingError: it does not, or is cut short.
    """
    stack: list[str] = []  # the opcode that made each thing, MARK among them
    memo: dict[int, str] = {}
    for opcode, value, _ in pickletools.genops(pickled):
        name = opcode.name
        if name not in _OPCODES:
            raise pickle.UnpicklingError(f"the pickle has an opcode {name}, which weights have not")
        if name.endswith("PUT") or name == "MEMOIZE":
            place = len(memo) if value is None else int(value)
            if place > len(memo) + 1:  # the opcodes number one after the other, from 0 or 1
                raise pickle.UnpicklingError(f"the pickle jumps to place {place} of its memo")
            memo[place] = stack[-1]
            continue
        if name.endswith("GET"):
            stack.append(memo[int(value or 0)])
            continue
        popped: list[str] = []
        if pickletools.markobject in opcode.stack_before:
            while (made := stack.pop()) != "MARK":
                popped.append(made)
            kept = opcode.stack_before.index(pickletools.markobject)
            del stack[len(stack) - kept :]
        else:
            popped = [stack.pop() for _ in opcode.stack_before]
        keys = {"SETITEM": popped[1:2], "SETITEMS": popped[1::2], "DICT": popped[1::2]}.get(name, [])
        if any("TUPLE" in key for key in keys):
            raise pickle.UnpicklingError("the pickle has tuples as names")
        stack.extend("MARK" if name == "MARK" else name for _ in opcode.stack_after)


class _Inert:
    """Something that a file may name and call. A state set by the file (pickle's BUILD) is ignored."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""


class _Names(_Inert, dict):
    """An OrderedDict of the file; PyTorch adds version numbers to it as a state."""

    __slots__ = ()

    def __init__(self, pairs: Any = ()) -> None:
        """Take pairs of a text or a number and a value, as a file lists them."""
        pairs = pairs.items() if isinstance(pairs, dict) else pairs
        super().__init__({_plain_key(key): value for key, value in pairs})


def _plain_key(key: object) -> object:
    if not isinstance(key, str | int | float | None):
        raise pickle.UnpicklingError(f"a {type(key).__name__} as a name")
    return key


class _Tensor(_Inert):
    """`torch._utils._rebuild_tensor_v2`: a view of a storage."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        """Return the array; offset and strides count numbers, not bytes."""
        plain = isinstance(storage, np.ndarray) and storage.ndim == 1 and storage.flags.c_contiguous
        axes = isinstance(size, tuple | list) and isinstance(stride, tuple | list) and len(size) <= _MOST_AXES
        if not (plain and axes) or not all(isinstance(n, int) and 0 <= n < 2**63 for n in (offset, *size, *stride)):
            raise pickle.UnpicklingError(f"a tensor of shape {_quoted(size)} and strides {_quoted(stride)}")
        if math.prod(size) > storage.size:
            # A stride of 0 repeats numbers without end.
            raise pickle.UnpicklingError(f"a tensor of {math.prod(size)} numbers in a storage of {storage.size}")
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


class _Settings(_Inert):
    """`argparse.Namespace`: the arguments of a training program, such as MAE's and DINO's; none is kept."""

    __slots__ = ()


_KNOWN = {
    ("argparse", "Namespace"): _Settings,
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
        claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > path.stat().st_size or any(entry.compress_type for entry in archive.infolist()):
            raise InputError(
                f"{path} has entries that are compressed or overlap, which torch.save does not write. To fix it, "
                f"{_REMEDY}."
            )
        if (size := archive.getinfo(pickles[0]).file_size) > _LARGEST_PICKLE:
            raise InputError(
                f"{path} has {size / 1e6:,.0f} MB of names beside its weights, and at most "
                f"{_LARGEST_PICKLE / 1e6:.0f} MB are read. To fix it, {_REMEDY}."
            )
        pickled = archive.read(pickles[0])
        self._archive, self._path = archive, path
        self._storages: dict[tuple[str, str], np.ndarray] = {}
        _check_opcodes(pickled)
        super().__init__(io.BytesIO(pickled))
        self._root = pickles[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in archive.namelist() and archive.read(f"{self._root}byteorder") != b"little":
            raise InputError(f"{path} was saved on a big-endian machine, which is not supported. Instead, {_REMEDY}.")

    def find_class(self, module: str, name: str) -> Any:
        """Return the meaning of a name in the pickle."""
        if (module, name) not in _KNOWN:
            raise InputError(
                f"{self._path} has {module[:_QUOTED]}.{name[:_QUOTED]}, which is not part of weights; nothing in the "
                f"file was run. If you trust it, {_REMEDY}."
            )
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        """Return the numbers of a storage, from ("storage", type, key, device, count)."""
        kind, storage, key, _, count = pid
        if not (isinstance(kind, str) and isinstance(storage, str) and isinstance(key, str) and isinstance(count, int)):
            raise pickle.UnpicklingError(f"a reference to {_quoted(pid)}")
        if kind != "storage":
            raise pickle.UnpicklingError(f"a reference to {_quoted(kind)}")
        if (storage, key) not in self._storages:
            content = self._archive.read(f"{self._root}data/{key}")
            self._storages[storage, key] = np.frombuffer(content, _STORAGES[storage])
        values = self._storages[storage, key]
        if values.size != count:
            raise pickle.UnpicklingError(
                f"storage {key[:_QUOTED]} must have {_quoted(count)} numbers; got {values.size}"
            )
        return values
