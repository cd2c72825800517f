"""Make the shipped subset of Fashion-MNIST from the full files.

Takes the first images of each class, in the order of the files, so that the subset is a function of the originals alone:

    python benchmarks/make_fashion_subset.py /usr/share/datasets/fashion-mnist numeric/_data/fashion_mnist.npz
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from noetherflow.numeric.data import fashion_mnist


def select(root: Path, train: bool, per_class: int) -> tuple[Any, Any]:
    """Images (n, 28, 28) and labels (n,) of the first `per_class` images of every class."""
    full = fashion_mnist(train, root)
    images, labels = full.images[:, 0].numpy(), full.labels.numpy().astype(np.uint8)
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in range(full.classes)]))
    return images[chosen], labels[chosen]


def main() -> None:
    """Write the subset; numpy dates the members of its archive 1980, so that the same input gives the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with the four IDX files")
    parser.add_argument("target", type=Path, help="file to write (.npz)")
    parser.add_argument("--train", type=int, default=400, help="training images of each class (default 400)")
    parser.add_argument("--test", type=int, default=100, help="test images of each class (default 100)")
    options = parser.parse_args()
    train_images, train_labels = select(options.root, True, options.train)
    test_images, test_labels = select(options.root, False, options.test)
    np.savez_compressed(
        options.target, train_images=train_images, train_labels=train_labels, test_images=test_images, test_labels=test_labels
    )
    print(f"{options.target}: {len(train_labels)} + {len(test_labels)} images, {options.target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
