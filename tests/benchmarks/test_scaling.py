"""The benchmark that scales the step on paper: its formulas against the compiled program, its times by hand."""

import pytest

from awcl_jax.models import resnet
from benchmarks import compiled, hardware, scaling

NETWORK = {
    "parameters": 25_000_000,
    "channels": 26_500,
    "norms": 53,
    "shortcuts": 3_840,
    "encoder": 24_000_000_000,
    "projection": 24_000_000,
    "embedding": 128,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exchange", "devices"),
    [("gather", 1), ("gather", 2), ("ring", 2)],
)
def test_the_formula_is_what_the_compiled_step_does(exchange, devices, monkeypatch):
    monkeypatch.setitem(resnet.STAGES, "resnet18", (1, 1))  # with a shortcut that convolves, and a small map
    found = scaling.measure(exchange, devices, 4, arch="resnet18", width_factor=0.125, size=16)
    network = found.pop("network")
    assert found == scaling.formula(exchange, devices, 4, **network)
    assert (network["norms"], network["channels"]) == (6, 8 + 2 * 8 + 3 * 16)


def test_a_loop_counts_as_often_as_it_runs_and_padding_not_at_all():
    hlo = """HloModule step
%body.1 (p.1: f32[8,4]) -> f32[8,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  ROOT %r.1 = f32[8,4]{1,0} collective-permute(%p.1), source_target_pairs={{0,1},{1,0}}
}
ENTRY %main (a.1: f32[8,4], k.1: f32[3,1,2]) -> f32[8,4] {
  %a.1 = f32[8,4]{1,0} parameter(0)
  %k.1 = f32[3,1,2]{2,1,0} parameter(1)
  %l.1 = f32[8,4,1]{2,1,0} bitcast(%a.1)
  %c.1 = f32[8,4,2]{2,1,0} convolution(%l.1, %k.1), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f
  %d.1 = f32[8,8]{1,0} dot(%a.1, %a.1), lhs_contracting_dims={1}, rhs_contracting_dims={1}, metadata={op_name="views"}
  %s.1 = (f32[2,4]{1,0}, f32[]) reduce-scatter(%a.1, %n.1), to_apply=%add.1
  ROOT %w.1 = f32[8,4]{1,0} while(%a.1), body=%body.1, backend_config={"known_trip_count":{"n":"5"}}
}
"""
    # 5 x 8 x 4 floats; (2 x 4 + 1) floats of each of 4 devices.
    assert compiled.collective_bytes(hlo, 4) == {"collective-permute": 640, "reduce-scatter": 144}
    # 8 rows of 4 pixels with 3 taps but for the two in the padding, to 2 features; 8 x 8 products of 4 numbers.
    assert compiled.matrix_operations(hlo, "views") == 2 * 8 * 10 * 2
    assert compiled.matrix_operations(hlo, "other") == 2 * 8 * 10 * 2 + 2 * 64 * 4


def test_resnet_50_has_the_operations_of_the_literature():
    # He et al. 2016, Table 1: 3.8e9 multiply-adds for three channels, 4.1e9 with torchvision's strides. One channel
    # instead of three saves 2 x 112^2 x 49 x 64 of them, and what falls on padding is not counted.
    forward = (scaling.encoder_operations("resnet50", 1.0, 224) + 2 * 112**2 * 49 * 64) / 3 / 2
    assert 3.85e9 < forward < 4.1e9
    # Without a gradient, but for the first layer's padding.
    assert scaling.encoder_operations("resnet50", 1.0, 224, gradient=False) / 2 == pytest.approx(forward, rel=1e-3)


def test_a_vision_transformer_has_the_operations_of_the_literature():
    # Touvron et al. 2021, Table 5: 4.6e9 multiply-adds of DeiT-S for three channels; 2 x 196 x 256 x 384 of them less.
    patches = 196 * 256 * 384
    forward = (scaling.encoder_operations("vit_small", 1.0, 224) - 4 * patches) / 3 / 2 + 3 * patches
    assert 4.55e9 < forward < 4.65e9
    assert scaling.encoder_operations("vit_small", 1.0, 224, gradient=False) / 2 + 2 * patches == forward


@pytest.mark.parametrize(("arch", "multiplications"), [("convnext_tiny", 4.5e9), ("convnext_small", 8.7e9)])
def test_a_convnext_has_the_operations_of_the_literature(arch, multiplications):
    # Liu et al. 2022, Table 1, for three channels. The first layer counts twice, without a gradient of the picture.
    of_stem = 56**2 * 16 * 96
    forward = (scaling.encoder_operations(arch, 1.0, 224) - 4 * of_stem) / 3 / 2 + 3 * of_stem
    assert forward == pytest.approx(multiplications, rel=0.015)


def test_a_row_of_the_extrapolation_by_hand():
    chip = hardware.Chip("x", 100e12, 10e12, 16e9, wire=200e9, link=50e9, domain=16, axes=2, beyond=5e9, crossing=2e9)
    step = scaling.extrapolate(chip, "gather", 16, 32, NETWORK)
    # 64 pictures of 24.024e9 operations at 35 of 100e12 a second.
    assert step.encoder == pytest.approx(64 * 24.024e9 / 35e12)
    # 6 x 64 x 1024 x 128 operations at 3.5e12 a second.
    assert step.loss == pytest.approx(50_331_648 / 3.5e12)
    # 15/16 of 1024 rows of 520 and of 512 bytes at 160e9 a second, and twice two hops along both edges of 4.
    assert step.exchange == pytest.approx(15 / 16 * 1024 * (520 + 512) / 160e9 + 2 * 4e-6)
    assert step.gradients == pytest.approx(2 * (15 / 16 * 100e6 / 160e9 + 4e-6))
    # 106 all-reduces of 2 x 500 floats, one of 512 frames' two rows.
    assert step.statistics == pytest.approx(
        106 * 2 * (15 / 16 * 4000 / 160e9 + 4e-6) + 2 * (15 / 16 * 512 * 1024 / 160e9 + 4e-6)
    )
    assert step.memory == 1024 * (2048 + 8 + 256)
    assert step.seconds == pytest.approx(step.encoder + step.loss + step.exchange + step.gradients + step.statistics)


def test_a_ring_by_hand():
    chip = hardware.Chip("x", 100e12, 10e12, 16e9, wire=200e9, link=50e9, domain=16, axes=2, beyond=5e9, crossing=2e9)
    step = scaling.extrapolate(chip, "ring", 32, 32, NETWORK)
    # A product of 64 x 64 pairs takes 0.3 us, three of them 0.9; a hop of 64 rows to the other domain at 1.6e9 bytes a
    # second much longer, so that it hides only these.
    pair = 2 * 64 * 64 * 128 / 3.5e12
    hop, home = 64 * 520 / 1.6e9 + 5e-6, 64 * 512 / 1.6e9 + 5e-6
    assert step.exchange == pytest.approx(32 * (2 * hop - 4 * pair + home))
    assert step.loss == pytest.approx(32 * 4 * pair)
    assert step.memory == 128 * (2048 + 8 + 256)


def test_beyond_a_domain_each_chip_fetches_its_part_first():
    chip = hardware.Chip("x", 1e12, 1e12, 16e9, wire=100e9, link=50e9, domain=4, axes=0, beyond=10e9, crossing=2e9)
    # Of 8e9 bytes in 2 domains of 4: half of a quarter over the network, then three quarters over the wires.
    sent = (0.5 * 2e9 / 10e9 + 0.75 * 8e9 / 100e9) / 0.8
    assert hardware.all_gather_seconds(chip, 8, 8e9) == pytest.approx(sent + 1e-6 + 5e-6)
    assert hardware.all_gather_seconds(chip, 1, 8e9) == 0
    assert hardware.ring_hop_seconds(chip, 1, 8e9) == 0
    assert hardware.torus(256, 2) == [16, 16]
    assert hardware.torus(512, 3) == [8, 8, 8]
    assert hardware.torus(32, 3) == [4, 4, 2]
