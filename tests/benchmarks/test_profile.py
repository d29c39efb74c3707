"""How a profile's operations are counted and sorted into parts."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from benchmarks import profile
from benchmarks.profile import Event


def test_time_within_another_operation_is_not_counted_twice():
    events = [
        Event("loop", 0, 100),
        Event("body", 10, 30),
        Event("part", 15, 5),
        Event("body", 50, 20),
        Event("after", 100, 7),
    ]
    expected = {"loop": 50, "body": 45, "part": 5, "after": 7}
    assert profile.own_times(events) == expected
    assert profile.own_times(reversed(events)) == expected
    assert sum(expected.values()) == 107, "the time in which the thread was busy"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jit(step)/shmap/augment/jit(two_views)/mul", "augmentation"),
        ("jit(step)/jvp(ContrastiveModel)/encoder/encoder.maps/layer1_0/conv2/ffi_call", "encoder: convolutions"),
        ("jit(step)/jvp(ContrastiveModel)/encoder/encoder.maps/layer2_0/downsample_bn/mul", "encoder: batch norm"),
        ("jit(step)/transpose(jvp(ContrastiveModel))/encoder/encoder.maps/bn1/mul", "encoder, backward: batch norm"),
        ("jit(step)/transpose(jvp(ContrastiveModel))/encoder/encoder.maps/max", "encoder, backward: others"),
        ("jit(step)/transpose(jvp(ContrastiveModel))/projection/out/dot_general", "projection, backward"),
        ("jit(step)/jvp(loss)/while/body/dot_general", "loss"),
        ("jit(step)/transpose(jvp(loss))/scatter-add", "loss, backward"),
        ("jit(step)/update/mul", "update"),
        ("", "without a name"),
    ],
)
def test_a_name_tells_the_part(name, part):
    assert profile.part_of(name) == part


def test_the_operations_of_a_program_are_found_in_its_trace(tmp_path):
    @jax.jit
    def step(x):
        with jax.named_scope("update"):
            return jnp.sort(jnp.sin(x) @ x, axis=1)

    x = jnp.ones((300, 300))
    named = profile.operation_names(step.lower(x).compile().as_text())
    with jax.profiler.trace(tmp_path):
        jax.block_until_ready(step(x))
    (trace,) = tmp_path.rglob("*.xplane.pb")
    events = [event for line in profile.operations(trace, module="jit_step") for event in line]
    assert {profile.part_of(named[event.name]) for event in events} == {"update"}
    assert all(event.duration >= 0 for event in events)
    assert not list(profile.operations(trace, module="jit_other"))


@pytest.mark.slow
def test_a_step_is_profiled_into_its_parts(tmp_path):
    args = SimpleNamespace(arch="resnet18", width=0.125, size=32, batch=8, dtype="float32", steps=2)
    found = profile.profiled(args, tmp_path)
    assert found["step"] > 0
    assert {"augmentation", "encoder, backward: convolutions", "loss", "update"} <= found["parts"].keys()
    nameless = found["parts"].get("without a name", 0)
    assert nameless < 0.2 * sum(found["parts"].values())
