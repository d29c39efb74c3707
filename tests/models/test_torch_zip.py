"""Files of torch.save are read without PyTorch, and nothing in them is run."""

import argparse
import collections
import io
import pickle
import time
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.models import torch_zip
from awcl_jax.models.torch_zip import read_torch_zip
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick


def archive(path, pickled: bytes, storages=None, **entries):
    """A file in the layout of torch.save."""
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("weights/data.pkl", pickled)
        for key, values in (storages or {}).items():
            out.writestr(f"weights/data/{key}", values.tobytes())
        for name, content in entries.items():
            out.writestr(f"weights/{name}", content)
    return path


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        """What to call on what."""
        self.call = (function, arguments)

    def __reduce__(self):
        """As pickle asks for it."""
        return self.call


def opcodes(name: str, arguments: object) -> bytes:
    """A pickle that calls `module name` on arguments, whether or not that module exists here."""
    inside = pickle.dumps(arguments, protocol=2)[2:-1]
    return b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n" + inside + b"R."


class Storage:
    """Stands for a storage where `tensor_file` pickles."""

    def __init__(self, kind="FloatStorage", key="0", count=4):
        """Type, key and number of numbers."""
        self.address = (kind, key, count)


def tensor_file(path, values, offset, size, stride, **storage):
    """A file of one dictionary with a tensor `x`, from opcodes by hand."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                kind, key, count = value.address
                return ("storage", kind, key, "cpu", count)
            return None

    out = io.BytesIO()
    Pickler(out, protocol=2).dump((Storage(**storage), offset, size, stride, False, {}))
    call = b"ctorch._utils\n_rebuild_tensor_v2\n" + out.getvalue()[2:-1] + b"R"
    return archive(path, b"\x80\x02}U\x01x" + call + b"s.", {"0": values})


@pytest.mark.peers
def test_what_torch_saves_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    grid = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": grid.T,
        "slice": grid[1:3, ::2],
        "half": torch.randn(3).half(),
        "bfloat16": torch.tensor([1.5, -2.0]).bfloat16(),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    torch.save({"epoch": 3, "state_dict": model.state_dict(), **tensors}, tmp_path / "weights.pth")
    content = read_torch_zip(tmp_path / "weights.pth")
    assert content["epoch"] == 3
    for names, wanted in ((content, tensors), (content["state_dict"], model.state_dict())):
        for name, tensor in wanted.items():
            assert names[name].dtype == jnp.dtype(str(tensor.dtype).removeprefix("torch.")), name
            np.testing.assert_array_equal(names[name].astype(np.float64), tensor.detach().double().numpy())


def test_a_tensor_is_a_view_of_its_storage(tmp_path):
    # Numbers 1, 3 and 5 of the storage, by hand.
    values = np.arange(10, 17, dtype=np.float32)
    content = read_torch_zip(tensor_file(tmp_path / "w.pth", values, 1, (3,), (2,), count=7))
    np.testing.assert_array_equal(content["x"], [11, 13, 15])


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (4, (1,), (1,)), (0, (2, 2), (3, 1)), (0, (2,), (-1,)), (-1, (1,), (1,))],
)
def test_a_tensor_never_reaches_beyond_its_storage(tmp_path, offset, size, stride):
    path = tensor_file(tmp_path / "w.pth", np.zeros(4, np.float32), offset, size, stride)
    with pytest.raises(InputError, match="damaged"):
        read_torch_zip(path)


def test_a_storage_has_as_many_numbers_as_are_told(tmp_path):
    path = tensor_file(tmp_path / "w.pth", np.zeros(4, np.float32), 0, (4,), (1,), count=5)
    with pytest.raises(InputError, match="must have 5 numbers; got 4"):
        read_torch_zip(path)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("nested", [False, True])
def test_a_malicious_file_is_not_run(tmp_path, protocol, nested):
    victim = tmp_path / "victim"
    call = Call(open, str(victim), "w")
    pickled = pickle.dumps({"state_dict": {"conv1.weight": call}} if nested else call, protocol=protocol)
    pickle.loads(pickled)
    assert victim.exists()  # it is malicious
    victim.unlink()
    with pytest.raises(InputError, match=r"io\.open, which is not part of weights; nothing in the file was run"):
        read_torch_zip(archive(tmp_path / "w.pth", pickled))
    assert not victim.exists()


@pytest.mark.parametrize(
    "name",
    [
        *("builtins eval", "builtins getattr", "os system", "posix system", "numpy load", "torch load"),
        *(
            "torch._utils _rebuild_tensor_v2.__globals__",
            "collections OrderedDict.fromkeys",
            "awcl_jax.runtime.cli sys",
        ),
    ],
)
def test_no_other_name_means_anything(tmp_path, name):
    with pytest.raises(InputError, match="is not part of weights") as told:
        read_torch_zip(archive(tmp_path / "w.pth", opcodes(name, ("x",))))
    assert "\n" not in str(told.value)


def test_a_file_changes_nothing_for_the_next(tmp_path):
    # BUILD (opcode b) would set attributes of what find_class gave: of the class, or of the function.
    for name in ("collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2"):
        state = pickle.dumps((None, {"items": 1, "__call__": 1}), protocol=2)[2:-1]
        path = archive(tmp_path / "w.pth", b"\x80\x02c" + name.encode() + b"\n" + state + b"b.")
        with pytest.raises(InputError):
            read_torch_zip(path)
    assert torch_zip._Names({"a": 1}).items() == {"a": 1}.items()
    path = tensor_file(tmp_path / "w.pth", np.ones(4, np.float32), 0, (4,), (1,))
    np.testing.assert_array_equal(read_torch_zip(path)["x"], np.ones(4))


def test_states_of_dictionaries_are_left_aside(tmp_path):
    names = collections.OrderedDict(a=1)
    names.keys = "hidden"  # as torch hangs `_metadata` on a state dict
    content = read_torch_zip(archive(tmp_path / "w.pth", pickle.dumps(names, protocol=2)))
    assert dict(content.items()) == {"a": 1}


def test_the_arguments_of_a_training_program_are_left_aside(tmp_path):
    # MAE's and DINO's checkpoints have them beside the weights.
    settings = argparse.Namespace(lr=0.1, device="cuda", nested=argparse.Namespace(betas=(0.9, 0.95)))
    content = read_torch_zip(archive(tmp_path / "w.pth", pickle.dumps({"args": settings, "epoch": 3}, protocol=2)))
    assert content["epoch"] == 3
    assert not hasattr(content["args"], "lr")


@pytest.mark.parametrize(
    "opcode",
    [
        b"\x80\x02cargparse\nNamespace\n(K\x01t\x81.",  # with an argument
        b"\x80\x02ctorch\nFloatStorage\n)\x81.",  # of a name that is no class here
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)\x81.",
        b"\x80\x02cbuiltins\nobject\n)\x81.",
    ],
)
def test_no_other_object_is_made(tmp_path, opcode):
    refused(tmp_path / "w.pth", opcode, "damaged|not part of weights")


def test_other_files_are_bad_input(tmp_path):
    path = tmp_path / "w.pth"
    for content in (b"", b"\x80\x02}.", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"format of PyTorch 1\.6 or later"):
            read_torch_zip(path)
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match=r"no data\.pkl"):
        read_torch_zip(path)
    with pytest.raises(InputError, match="must have a dictionary of weights; got list"):
        read_torch_zip(archive(path, pickle.dumps([1])))
    with pytest.raises(InputError, match="big-endian"):
        read_torch_zip(archive(path, pickle.dumps({}), byteorder="big"))
    for pickled in (pickle.dumps({"a": 1})[:-3], b"\x80\x02U\x01", b"garbage"):
        with pytest.raises(InputError, match="damaged"):
            read_torch_zip(archive(path, pickled))
    with pytest.raises(FileNotFoundError):
        read_torch_zip(tmp_path / "none.pth")


def refused(path, pickled: bytes, message: str, **entries) -> None:
    """Read a file that must be refused, in time and memory in proportion to its size."""
    began = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message) as caught:
            read_torch_zip(archive(path, pickled, **entries))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - began < 5
    assert len(str(caught.value)) < len(str(path)) + 800


def test_a_far_place_in_the_memo_is_refused(tmp_path):
    # 10,000 would be harmless; the unpickler would make room for as many as the opcode names.
    refused(tmp_path / "w.pth", b"\x80\x02}r\x10\x27\x00\x00.", "jumps to place 10000 of its memo")


@pytest.mark.parametrize("opcode", [b"(\x8f.", b"\x80\x04\x8f.", b"\x80\x02K\x012.", b"\x80\x02\x82\x01."])
def test_opcodes_that_weights_have_not_are_refused(tmp_path, opcode):
    refused(tmp_path / "w.pth", opcode, "damaged .*opcode (EMPTY_SET|DUP|EXT1)")


def doubled(levels: int) -> bytes:
    """Pickle a tuple that is in itself twice on each of these levels, without its end."""
    grown = b"K\x01q\x00"
    for level in range(levels):
        grown += bytes([ord("h"), level, 0x86, ord("q"), level + 1])
        # x, x -> (x, x)
    return grown


def test_a_tuple_that_doubles_is_neither_a_name_nor_quoted_in_full(tmp_path):
    # Ten levels: a thousand numbers, where thirty would be a billion.
    refused(tmp_path / "w.pth", b"\x80\x02}" + doubled(10) + b"K\x02s.", "tuples as names")
    pair = b"(" + doubled(10) + b"K\x02t"
    refused(tmp_path / "w.pth", b"\x80\x02ccollections\nOrderedDict\n](" + b"]" + doubled(10) + b"aK\x00eR.", "damaged")
    refused(tmp_path / "w.pth", b"\x80\x02" + pair + b"Q.", "damaged")


def test_a_storage_that_is_no_name_is_quoted_in_part(tmp_path):
    address = b"(U\x07storage" + doubled(10) + b"U\x010U\x03cpuK\x04t"
    refused(tmp_path / "w.pth", b"\x80\x02" + address + b"Q.", "a reference to")


def test_a_tensor_has_no_more_numbers_than_its_storage(tmp_path):
    path = tensor_file(tmp_path / "w.pth", np.zeros(4, np.float32), 0, (3, 4), (0, 1))
    with pytest.raises(InputError, match="a tensor of 12 numbers in a storage of 4"):
        read_torch_zip(path)


def test_long_names_are_quoted_in_part(tmp_path):
    refused(tmp_path / "w.pth", opcodes(f"os {'x' * 5000}", ("x",)), "os.x{200}, which is not part of weights")


def test_a_compressed_archive_and_a_large_pickle_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("weights/data.pkl", pickle.dumps({"a": "b" * 1000}))
    with pytest.raises(InputError, match="compressed or overlap"):
        read_torch_zip(path)
    monkeypatch.setattr(torch_zip, "_LARGEST_PICKLE", 100)
    refused(path, pickle.dumps({"a": "b" * 1000}), "of names beside its weights")
