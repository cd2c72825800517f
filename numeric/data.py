"""Real data: Fashion-MNIST (shipped in part, read in full where present), scikit-learn's digits, and CIFAR-10 from a path.

Nothing is downloaded. What is shipped is a class-balanced subset of Fashion-MNIST (MIT licence; the text lies beside it), the default that
works on every machine.
"""

import gzip
import importlib.util
import io
import os
import pickle
import struct
import zlib
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from noetherflow.errors import DataError
from noetherflow.numeric.images import ImageSet

__all__ = ["ImageSet", "cifar10", "digits", "fashion_mnist", "fashion_mnist_subset", "read_idx"]

ENVIRONMENT_VARIABLE: Final = "NOETHERFLOW_DATA"
# Where Debian's package dataset-fashion-mnist puts the files.
SYSTEM_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
_FASHION_SOURCE: Final = "Zalando Research, Fashion-MNIST (xiao2017fashion)"
_IDX_NAMES: Final = {
    True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    False: ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def fashion_mnist(train: bool = True, root: str | os.PathLike[str] | None = None) -> ImageSet:
    """Fashion-MNIST: the full set where its files are found, else the shipped subset.

    The four IDX files (plain or gzip) are looked for in `root` alone if it is given; else in ``$NOETHERFLOW_DATA``, in its folder
    ``fashion-mnist``, and in Debian's folder. The result's name tells which set it is.

    Parameters
    ----------
    train
        The training part (60,000 images, or 4,000 of the subset) or the test part (10,000, or 1,000).
    root
        Folder that must hold the files.

    Returns
    -------
    ImageSet
        Images of shape (n, 1, 28, 28), 10 classes.

    Raises
    ------
    DataError
        `root` is given and lacks the files, or a file is damaged.

    Examples
    --------
    >>> images = fashion_mnist(train=False)
    >>> images.classes, tuple(images.images.shape[1:])
    (10, (1, 28, 28))
    """
    folder = _find_fashion(train, root)
    if folder is None:
        return fashion_mnist_subset(train)
    images, labels = (read_idx(_existing(folder, name)) for name in _IDX_NAMES[train])
    return _image_set(images[:, None], labels, name="Fashion-MNIST", source=_FASHION_SOURCE, licence="MIT")


def fashion_mnist_subset(train: bool = True) -> ImageSet:
    """Read the shipped subset of Fashion-MNIST: the first images of each class, in the order of the original files.

    Parameters
    ----------
    train
        The training part (4,000 images, 400 of each class) or the test part (1,000, 100 of each class).

    Returns
    -------
    ImageSet
        Images of shape (n, 1, 28, 28), 10 classes; the same on every machine.

    Examples
    --------
    >>> len(fashion_mnist_subset()), len(fashion_mnist_subset(train=False))
    (4000, 1000)
    """
    part = "train" if train else "test"
    packed = resources.files("noetherflow.numeric").joinpath("_data", "fashion_mnist.npz").read_bytes()
    with np.load(io.BytesIO(packed)) as arrays:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    return _image_set(images[:, None], labels, name="Fashion-MNIST (subset)", source=_FASHION_SOURCE, licence="MIT")


def digits() -> ImageSet:
    """Scanned digits, 1,797 images of 8 x 8 pixels with values 0 to 16: the smallest real set.

    Returns
    -------
    ImageSet
        Images of shape (1797, 1, 8, 8), 10 classes.

    Raises
    ------
    DataError
        scikit-learn, whose package holds the file, is not installed.

    Examples
    --------
    >>> tuple(digits().images.shape)
    (1797, 1, 8, 8)
    """
    # scikit-learn is located, never imported: only one file of it is needed, and importing it takes a second.
    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if path is None or not path.is_file():
        raise DataError(
            f"The digits could not be read: scikit-learn, which holds them, is {'without its data files' if path else 'not installed'}. "
            "Install it with: pip install scikit-learn",
            path=path,
        )
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return _image_set(
        table[:, :64].reshape(-1, 1, 8, 8),
        table[:, 64],
        name="digits",
        source="E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI), as shipped by scikit-learn",
        licence="CC BY 4.0",
    )


def cifar10(root: str | os.PathLike[str], train: bool = True) -> ImageSet:
    """CIFAR-10 from files that the user has: the python or the binary version, as unpacked from its authors' archive.

    Parameters
    ----------
    root
        Folder that holds ``cifar-10-batches-py`` or ``cifar-10-batches-bin``, or is one of the two.
    train
        The five training batches or the test batch.

    Returns
    -------
    ImageSet
        Images of shape (n, 3, 32, 32), 10 classes.

    Raises
    ------
    DataError
        A file is missing or damaged, or a pickle holds anything but arrays.
    """
    numbered = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    for folder in (Path(root), Path(root, "cifar-10-batches-py"), Path(root, "cifar-10-batches-bin")):
        if (folder / numbered[0]).is_file():
            parts = [_read_cifar_pickle(_existing(folder, name)) for name in numbered]
            break
        if (folder / f"{numbered[0]}.bin").is_file():
            parts = [_read_cifar_binary(_existing(folder, f"{name}.bin")) for name in numbered]
            break
    else:
        raise DataError(
            f"No CIFAR-10 under {os.fspath(root)!r}: looked for {numbered[0]} and {numbered[0]}.bin there and in its folders "
            "cifar-10-batches-py and cifar-10-batches-bin. Unpack the authors' archive and give the folder it made.",
            root=os.fspath(root),
        )
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    source = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
    return _image_set(images, labels, name="CIFAR-10", source=source, licence="as given by its authors; not shipped")


def read_idx(path: str | os.PathLike[str]) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Read an IDX file of unsigned bytes, plain or gzip.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    ndarray of uint8
        With the shape that the file's header gives.

    Raises
    ------
    DataError
        The file cannot be read, is not IDX of unsigned bytes, or holds more or fewer values than its header says.
    """
    try:
        raw = Path(path).read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"The file {os.fspath(path)!r} cannot be read: {error}. Get a fresh copy of it.", path=os.fspath(path)) from error
    # Header: two zero bytes, the type (8: unsigned byte), the number of axes, then each axis as a big-endian 32-bit integer.
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{os.fspath(path)!r} is no IDX file of unsigned bytes: it starts with {raw[:4].hex()!r}.", path=os.fspath(path))
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    values = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3])
    if values.size != np.prod(shape, dtype=np.int64):
        raise DataError(
            f"{os.fspath(path)!r} announces shape {shape} but holds {values.size} values. Get a fresh copy of it.",
            path=os.fspath(path),
            shape=shape,
        )
    return values.reshape(shape)


def _find_fashion(train: bool, root: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder to read the full set from; None means that the subset must do."""
    if root is not None:
        for name in _IDX_NAMES[train]:
            _existing(Path(root), name)
        return Path(root)
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    folders = [Path(named), Path(named, "fashion-mnist")] if named else []
    complete = (folder for folder in [*folders, SYSTEM_FOLDER] if all(_on_disk(folder, name) for name in _IDX_NAMES[train]))
    return next(complete, None)


def _on_disk(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _existing(folder: Path, name: str) -> Path:
    path = _on_disk(folder, name)
    if path is None:
        raise DataError(f"No file {name} (plain or .gz) in {str(folder)!r}. Give the folder that holds it.", folder=str(folder), name=name)
    return path


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers; any other class in a file from elsewhere is refused, so no code of it can run."""

    _ALLOWED: Final = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        # Files written by old numpy name numpy.core, by new numpy numpy._core.
        if module_name in {"numpy", "numpy.core.multiarray", "numpy._core.multiarray"} and global_name in self._ALLOWED:
            return self._ALLOWED[global_name]
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, and only numpy arrays are expected")


def _read_cifar_pickle(path: Path) -> tuple[Any, Any]:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        return np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32), np.asarray(content[b"labels"], np.uint8)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{str(path)!r} is no CIFAR-10 batch of the python version: {error}.", path=str(path)) from error


def _read_cifar_binary(path: Path) -> tuple[Any, Any]:
    raw = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if raw.size == 0 or raw.size % 3073:
        raise DataError(
            f"{str(path)!r} has {raw.size} bytes; CIFAR-10 has rows of 3073 (a label, then 3 x 32 x 32 values). Get a fresh copy of it.",
            path=str(path),
        )
    rows = raw.reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def _image_set(images: Any, labels: Any, name: str, source: str, licence: str) -> ImageSet:
    """Copy arrays into tensors of their own: arrays that wrap a file's bytes are read-only."""
    return ImageSet(torch.tensor(images, dtype=torch.uint8), torch.tensor(labels, dtype=torch.int64), name, source, licence)
