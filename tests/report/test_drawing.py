"""Pictures: that they are written, and that what they say is so. How they look, a person must judge."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from awcl_jax.report import drawing
from awcl_jax.report.embedding_map import flat_map
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.metrics import MetricsWriter

NAMES = ("abdomen", "femur", "thorax")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, so that their texts and lines can be read."""
    figures = []
    save = Figure.savefig

    def keep(figure, out, **options):
        figures.append(figure)
        save(figure, out, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def visible(figure):
    return [ax for ax in figure.axes if ax.get_visible()]


def test_every_number_of_a_run_is_drawn(tmp_path, drawn):
    rng = np.random.default_rng(0)
    with MetricsWriter(tmp_path, start_step=0) as writer:
        for step in range(1, 101):
            writer.write(
                step,
                {
                    "spread": 0.5 + step / 300,
                    "loss": 4 + rng.normal(),
                    "learning_rate": 1e-3 * step,
                    "collapsed_loss": 4.14,
                },
            )
        writer.write(100, {"knn/accuracy": 0.5, "knn/macro_f1": 0.4, "broken": float("nan")})
    drawing.plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert imread(tmp_path / "loss.png").ndim == 3
    panels = {ax.get_title(): ax for ax in visible(drawn[0])}
    assert list(panels) == [
        "Contrastive loss",
        "Learning rate",
        "Spread (1: uniform, 0: collapsed)",
        "Broken",
        "Nearest neighbours",
    ]
    raw, smooth, collapsed = panels["Contrastive loss"].lines
    assert len(raw.get_xdata()) == 100
    # A mean of three neighbours, at the step in the middle.
    assert smooth.get_xdata()[0] == 2
    assert smooth.get_ydata()[0] == pytest.approx(raw.get_ydata()[:3].mean())
    assert set(collapsed.get_ydata()) == {4.14}
    assert len(panels["Learning rate"].lines) == 1, "a schedule is not smoothed"
    assert [line.get_label() for line in panels["Nearest neighbours"].lines] == ["accuracy", "macro-F1"]
    assert panels["Broken"].texts[0].get_text() == "broken: never finite"


def test_a_run_without_numbers_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match="no numbers"):
        drawing.plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")


def test_montage_of_pairs_shows_both_frames_and_marks_two_scans(tmp_path, drawn):
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 40, 60), dtype=np.uint8)
    captions = [(f"scan {i}: femur", f"scan {2 * i}: femur") for i in range(5)]
    cross = np.array([False, True, True, True, True])
    drawing.montage_pairs(images, captions, tmp_path / "pairs.png", cross_scan=cross)
    axes = visible(drawn[0])
    assert len(axes) == 5
    assert drawn[0].get_suptitle() == "Positive pairs: 4 of 5 across two scans"
    for i, ax in enumerate(axes):
        shown = np.asarray(ax.images[0].get_array())
        np.testing.assert_array_equal(shown[:, :60], images[i, 0])
        np.testing.assert_array_equal(shown[:, -60:], images[i, 1])
        left, right = ax.texts
        assert (left.get_text(), right.get_text()) == captions[i]
        assert left.xy[0] < 60 < right.xy[0]
    assert axes[0].spines["top"].get_edgecolor() != axes[1].spines["top"].get_edgecolor()


def extents(figure, texts):
    """Where texts are, in pixels: left, bottom, right, top."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [text.get_window_extent(canvas.get_renderer()).extents for text in texts]


def test_captions_of_a_pair_do_not_cover_each_other(tmp_path, drawn):
    # A keyed hash has 20 digits.
    captions = [("e309bf0a00e6698c3e0e Fetal thorax", "1890356535cc64b72ce8 Fetal abdomen")] * 4
    images = np.zeros((4, 2, 48, 48), np.uint8)
    drawing.montage_pairs(images, captions, tmp_path / "pairs.png", cross_scan=np.ones(4, bool))
    texts = [text for ax in visible(drawn[0]) for text in ax.texts]
    assert [text.get_text().split() for text in texts[:2]] == [caption.split() for caption in captions[0]]
    places = extents(drawn[0], texts)
    for left, right in itertools.pairwise(places):
        assert left[2] < right[0]


@pytest.mark.parametrize("neighbours", [1, 2, 5])
def test_a_heading_fits_its_picture(tmp_path, drawn, neighbours):
    images = np.zeros((2, neighbours, 24, 24), np.uint8)
    captions = [["scan 3: femur"] * neighbours] * 2
    drawing.montage_neighbours(images[:, 0], list(images), ["scan 1: femur"] * 2, captions, tmp_path / "alike.png")
    figure = drawn[0]
    heading = figure._suptitle
    ((left, bottom, right, top),) = extents(figure, [heading])
    assert 0 <= left < right <= figure.bbox.width
    assert top <= figure.bbox.height
    highest = max(ax.title.get_window_extent().y1 for ax in visible(figure))
    assert highest < bottom, "nor does it cover what is below it"


@pytest.mark.parametrize("normalised", [False, True])
def test_montage_of_views(tmp_path, drawn, normalised):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 30, 40), dtype=np.uint8)
    views = rng.integers(0, 256, (2, 3, 24, 24), dtype=np.uint8)
    views = ((views - 120.0) / 60.0).astype(np.float32) if normalised else views
    drawing.montage_views(frames, views, ["scan 1: femur", "scan 2: thorax"], tmp_path / "views.png")
    axes = np.array(drawn[0].axes).reshape(2, 4)
    np.testing.assert_array_equal(axes[1, 0].images[0].get_array(), frames[1])
    np.testing.assert_array_equal(axes[1, 3].images[0].get_array(), views[1, 2])
    limits = {ax.images[0].get_clim() for ax in axes[:, 1:].flat}
    assert limits == {(views.min(), views.max()) if normalised else (0, 255)}
    assert axes[1, 0].get_ylabel() == "scan 2: thorax"


def labelled_features(n=60):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 3, n)
    features = 5 * np.eye(4, 12)[labels] + 0.3 * rng.normal(size=(n, 12))
    return features.astype(np.float32), labels, rng.integers(0, 9, n)


def test_embedding_map_gathers_what_is_alike(tmp_path, drawn):
    features, labels, scans = labelled_features()
    before = np.random.default_rng(1).normal(size=(60, 20)).astype(np.float32)
    maps = {"untrained": flat_map(before, seed=0), "trained": flat_map(features, seed=0)}
    drawing.embedding_map(maps, labels, NAMES, scans, tmp_path / "map.png")
    by_anatomy, by_scan = drawn[0].axes[2:]
    assert by_scan.get_title() == f"trained, by scan ({len(np.unique(scans))} scans)"
    assert [group.get_label() for group in by_anatomy.collections] == ["unlabelled", *NAMES]
    groups = [np.asarray(group.get_offsets()) for group in by_anatomy.collections]
    assert sum(map(len, groups)) == 60
    # Four groups five deviations apart stay four groups on the map.
    centres = np.array([group.mean(axis=0) for group in groups])
    for i, group in enumerate(groups):
        nearest = np.linalg.norm(group[:, None] - centres, axis=-1).argmin(axis=1)
        assert (nearest == i).mean() > 0.95
    untrained = np.concatenate([group.get_offsets() for group in drawn[0].axes[0].collections])
    assert len(untrained) == 60


def test_a_map_is_fixed_by_its_seed():
    features, _, _ = labelled_features()
    np.testing.assert_array_equal(flat_map(features, seed=0), flat_map(features, seed=0))


def test_a_map_of_a_collapsed_encoder_or_a_handful_of_frames(tmp_path):
    features, labels, scans = labelled_features()
    places = flat_map(np.ones_like(features[:, :1]), seed=0)
    assert not places.any()
    drawing.embedding_map({"collapsed": places}, labels, NAMES, scans, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 0
    assert np.isfinite(flat_map(features[:4], seed=0)).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_map_of_fewer_than_four_frames_keeps_their_distances(tmp_path, drawn, count):
    features, labels, scans = (values[:count] for values in labelled_features())
    places = flat_map(features, seed=0)
    assert places.shape == (count, 2)
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    for i in range(count):
        for j in range(count):
            assert np.linalg.norm(places[i] - places[j]) == pytest.approx(np.linalg.norm(rows[i] - rows[j]), abs=1e-6)
    drawing.embedding_map({"trained": places}, labels, NAMES, scans, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 0


def test_confusion_picture_counts(tmp_path, drawn):
    labels, predictions = np.array([0, 0, 0, 2]), np.array([0, 0, 2, 2])
    drawing.confusion_picture(labels, predictions, NAMES, tmp_path / "confusion.png")
    ax = drawn[0].axes[0]
    # Rows true, columns predicted; femur is nowhere.
    assert [text.get_text() for text in ax.texts] == ["2", "1", "0", "1"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["abdomen (3)", "thorax (1)"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[2 / 3, 1 / 3], [0, 1]])
    assert ax.get_title() == "Confusion: 3 of 4 frames right"


def test_a_name_with_dollars_is_shown_as_it_is(tmp_path, drawn):
    names = ("$a_$", "b$ and $^", "c")
    drawing.confusion_picture(np.array([0, 1]), np.array([1, 1]), names, tmp_path / "confusion.png")
    assert [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()] == ["$a_$ (1)", "b$ and $^ (1)"]
    images = np.zeros((1, 2, 24, 24), np.uint8)
    drawing.montage_pairs(images, [names[:2]], tmp_path / "pairs.png", cross_scan=np.ones(1, bool))
    assert [text.get_text() for text in drawn[1].axes[0].texts] == list(names[:2])
    drawing.montage_views(images[:, 0], images, names[:1], tmp_path / "views.png")
    places = np.zeros((3, 2))
    both = {"untrained": places, "trained": places}
    drawing.embedding_map(both, np.arange(3), names, np.arange(3), tmp_path / "map.png", seed=0)
    assert (tmp_path / "map.png").is_file()
