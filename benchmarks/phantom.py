"""Measure how hard the phantom is (nearest neighbours on its pixels), and how long it takes to make.

python -m benchmarks.phantom
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.evaluate.frozen import PIXELS, downsampled_pixels
from awcl_jax.ingest.phantom import Phantom


def main() -> None:
    """Make the default set in a temporary folder and print the scores."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        builder = Phantom(config="default", data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
        seconds = time.perf_counter() - start
        index = ScanIndex.from_dataset(Path(builder.data_path))
        pixels = downsampled_pixels(FrameReader(index), np.arange(len(index)))
    print(f"\n{len(index)} frames of {len(index.scan_names)} scans made in {seconds:.1f} s")

    def read(what: str, labels: np.ndarray, train: np.ndarray, test: np.ndarray, neighbours: int) -> None:
        nearest = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute")
        predicted = nearest.fit(pixels[train], labels[train]).predict(pixels[test])
        f1 = f1_score(labels[test], predicted, average="macro")
        print(f"{what:54} accuracy {accuracy_score(labels[test], predicted):.2f}, macro-F1 {f1:.2f}")

    print(f"From {PIXELS} x {PIXELS} pixels, by nearest neighbours:")
    in_train = index.splits == index.split_names.index("train")
    in_test = index.splits == index.split_names.index("test")
    labelled = index.fine != UNLABELLED
    read("fine anatomy, of other patients (k = 20)", index.fine, in_train & labelled, in_test & labelled, 20)
    read("coarse anatomy, of other patients (k = 20)", index.coarse, in_train & labelled, in_test & labelled, 20)
    read("machine, of other patients (k = 20)", index.machines, in_train, in_test, 20)
    even = np.arange(len(index)) % 2 == 0
    early = np.zeros(len(index), bool)
    for scan in range(len(index.scan_names)):
        frames = np.flatnonzero(index.scans == scan)  # in the order of the examination
        early[frames[: frames.size // 2]] = True
    read("scan, every other frame from its neighbours (k = 1)", index.scans, even, ~even, 1)
    read("scan, second half from the first (k = 1)", index.scans, early, ~early, 1)


if __name__ == "__main__":
    main()
