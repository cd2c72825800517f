"""Real data: what is shipped, what is read from files, and the stream of batches."""

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from noetherflow.errors import DataError
from noetherflow.numeric import data
from noetherflow.numeric.data import ImageSet, cifar10, digits, fashion_mnist, fashion_mnist_subset, read_idx


def idx_bytes(values: "np.ndarray[Any, np.dtype[np.uint8]]") -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def small_set(count: int = 10, channels: int = 1, size: int = 4) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % 3, "small", "made here", "MIT")


@pytest.fixture
def fashion_folder(tmp_path: Path) -> Path:
    """A folder with all four files, some plain and some gzip."""
    values = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(values)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.array([4, 0, 9], np.uint8)))
    return tmp_path


@pytest.mark.parametrize(("train", "per_class"), [(True, 400), (False, 100)])
def test_the_shipped_subset_is_balanced_and_real(train: bool, per_class: int) -> None:
    images = fashion_mnist_subset(train)
    assert torch.bincount(images.labels).tolist() == [per_class] * 10
    assert images.images.shape == (10 * per_class, 1, 28, 28)
    mean, deviation = images.moments()
    # Of the full training set: 72.94 and 90.02 (0.2860 and 0.3530 of 255).
    assert abs(mean.item() - 72.94) < 2
    assert abs(deviation.item() - 90.02) < 2


def test_the_shipped_file_is_small_and_has_its_licence_beside_it() -> None:
    folder = Path(data.__file__).with_name("_data")
    assert (folder / "fashion_mnist.npz").stat().st_size < 3_000_000
    licence = (folder / "fashion_mnist.LICENSE.txt").read_text()
    assert "Zalando SE" in licence
    assert "Permission is hereby granted" in licence


def test_full_files_are_preferred_and_shipped_ones_the_fallback(
    fashion_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "SYSTEM_FOLDER", tmp_path_factory.mktemp("nothing"))
    assert len(fashion_mnist()) == 4000
    assert fashion_mnist(root=fashion_folder).labels.tolist() == [4, 0, 9]
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, str(fashion_folder))
    assert fashion_mnist(train=False).images[1, 0, 0, 0] == 28 * 28 % 256
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, str(tmp_path_factory.mktemp("other")))
    assert fashion_mnist().name.endswith("(subset)")
    monkeypatch.setattr(data, "SYSTEM_FOLDER", fashion_folder)
    assert fashion_mnist().name == "Fashion-MNIST"


def test_a_given_root_without_the_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train-images-idx3-ubyte") as caught:
        fashion_mnist(root=tmp_path)
    assert caught.value.data["folder"] == str(tmp_path)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_is_read_back(tmp_path: Path, shape: tuple[int, ...], packed: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    raw = idx_bytes(values)
    (tmp_path / "file").write_bytes(gzip.compress(raw) if packed else raw)
    np.testing.assert_array_equal(read_idx(tmp_path / "file"), values)


WHOLE = idx_bytes(np.zeros(5, np.uint8))

# Named, since the bytes of a gzip file hold the time at which it was made.
DAMAGED = {
    "empty": b"",
    "of floats": b"\0\0\x0d\x01\0\0\0\x01\0",
    "no sizes": b"\0\0\x08\x03\0\0",
    "cut short": WHOLE[:-1],
    "too long": WHOLE + b"\0",
    "gzip cut short": gzip.compress(WHOLE)[:-9],
    "gzip of garbage": gzip.compress(b"x" * 500)[:12] + b"garbage",
}


@pytest.mark.parametrize("raw", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_idx_file_is_an_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(DataError, match="file"):
        read_idx(tmp_path / "file")


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    images = digits()
    bunch = datasets.load_digits()
    np.testing.assert_array_equal(images.images[:, 0].numpy(), bunch.images)
    np.testing.assert_array_equal(images.labels.numpy(), bunch.target)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        digits()


def cifar_batch(index: int) -> tuple[Any, list[int]]:
    return np.random.default_rng(index).integers(0, 256, (4, 3072), dtype=np.uint8), [index, 1, 2, 9]


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-py"])
@pytest.mark.parametrize("old_numpy", [False, True])
def test_cifar_python_version(tmp_path: Path, folder: str, old_numpy: bool) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    for index in range(1, 6):
        images, labels = cifar_batch(index)
        raw = pickle.dumps({b"data": images, b"labels": labels}, protocol=3)
        raw = raw.replace(b"numpy._core.", b"numpy.core.") if old_numpy else raw
        (tmp_path / folder / f"data_batch_{index}").write_bytes(raw)
    read = cifar10(tmp_path)
    assert read.images.shape == (20, 3, 32, 32)
    assert read.labels[4:8].tolist() == [2, 1, 2, 9]
    np.testing.assert_array_equal(read.images[4].numpy().ravel(), cifar_batch(2)[0][0])


def test_cifar_binary_version(tmp_path: Path) -> None:
    images, labels = cifar_batch(3)
    (tmp_path / "test_batch.bin").write_bytes(np.hstack([np.array(labels, np.uint8)[:, None], images]).tobytes())
    read = cifar10(tmp_path, train=False)
    assert read.labels.tolist() == labels
    np.testing.assert_array_equal(read.images.reshape(4, -1).numpy(), images)


class Harmful:
    """What a hostile pickle would hold: unpickling it calls a function of the writer's choice."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path, ("opened",)


@pytest.mark.parametrize("content", [pickle.dumps(Harmful()), pickle.dumps({"data": 1}), b"", b"no pickle at all"])
def test_a_cifar_pickle_of_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch"):
        cifar10(tmp_path, train=False)


def test_cifar_that_is_missing_or_cut_short_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        cifar10(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073))
    with pytest.raises(DataError, match=r"data_batch_2\.bin"):
        cifar10(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(bytes(3072))
    with pytest.raises(DataError, match="3073"):
        cifar10(tmp_path, train=False)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2)),
    ],
)
def test_an_image_set_checks_what_it_is_given(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(DataError):
        ImageSet(images, labels, "wrong", "made here", "MIT")


@pytest.mark.parametrize("channels", [1, 3])
def test_moments_agree_with_a_direct_computation(channels: int) -> None:
    images = small_set(count=50, channels=channels)
    mean, deviation = images.moments()
    pixels = images.images.double()
    torch.testing.assert_close(mean, pixels.mean((0, 2, 3)), rtol=1e-13, atol=0)
    torch.testing.assert_close(deviation, pixels.var((0, 2, 3), correction=0).sqrt(), rtol=1e-12, atol=0)


def test_a_constant_channel_can_be_normalised() -> None:
    flat = ImageSet(torch.full((2, 1, 4, 4), 7, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "flat", "made here", "MIT")
    inputs, _ = next(flat.batches(size=2, seed=0, steps=1))
    assert torch.equal(inputs, torch.zeros_like(inputs))


def test_batches_are_a_function_of_the_seed() -> None:
    images = small_set()
    streams = [list(images.batches(size=4, seed=seed, steps=5)) for seed in (0, 0, 1)]
    same = [torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(streams[0], streams[1], strict=True)]
    assert all(same)
    assert any(not torch.equal(a, c) for (a, _), (c, _) in zip(streams[0], streams[2], strict=True))


def test_every_epoch_is_a_new_shuffle_without_repeats() -> None:
    count, size = 10, 4
    pixels = torch.arange(count, dtype=torch.uint8).reshape(count, 1, 1, 1)
    images = ImageSet(pixels, torch.arange(count), "numbered", "made here", "MIT")
    labels = [batch.tolist() for _, batch in images.batches(size=size, seed=3, steps=6)]
    # Two whole batches to an epoch; two images are dropped each time.
    epochs = [labels[i] + labels[i + 1] for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_batches_are_padded_with_black_around_and_normalised() -> None:
    images = small_set(count=6, channels=3, size=5)
    mean, deviation = (m.reshape(1, -1, 1, 1) for m in images.moments())
    inputs, labels = next(images.batches(size=6, seed=0, steps=1, size_px=8, dtype=torch.float64))
    assert inputs.shape == (6, 3, 8, 8)
    assert inputs.dtype == torch.float64
    restored = inputs * deviation + mean
    inner = restored[:, :, 1:6, 1:6].round().to(torch.uint8)
    assert sorted(inner.sum((1, 2, 3)).tolist()) == sorted(images.images.sum((1, 2, 3)).tolist())
    restored[:, :, 1:6, 1:6] = 0
    assert restored.abs().max() < 1e-12
    assert sorted(labels.tolist()) == sorted(images.labels.tolist())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"size": 11}, "10 images"),
        ({"size": 0}, "batch of 0"),
        ({"size": 2, "steps": -1}, "-1 batches"),
        ({"size": 2, "size_px": 3}, "size_px"),
    ],
)
def test_impossible_batches_are_refused_at_the_call(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        small_set().batches(**{"seed": 0, "steps": 1, **arguments})
