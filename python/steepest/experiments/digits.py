"""Handwritten digits: scikit-learn's 8 x 8 images, or the MNIST IDX files from a folder."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["Digits", "load_digits", "load_mnist", "read_idx"]

_CLASSES = 10
_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_UNSIGNED_BYTE = 0x08  # the IDX type code
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Digits:
    """Images of the digits 0 to 9, split into training and test set.

    Attributes
    ----------
    name : str
    train_images, test_images : ndarray, shape (n, pixels), float32
        Pixel values in [0, 1].
    train_labels, test_labels : ndarray, shape (n,), uint8
    """

    name: str
    train_images: NDArray[np.float32]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.uint8]


def load_digits(*, rng: np.random.Generator | int | None = None) -> Digits:
    """scikit-learn's 1797 digits (8 x 8 pixels), a fifth of them, drawn at random, held out as the test set.

    Parameters
    ----------
    rng : Generator or int, optional
        Draws the test set.

    Returns
    -------
    Digits

    Raises
    ------
    ImportError
        scikit-learn is not installed: ``pip install "steepest[experiments]"``.

    Examples
    --------
    >>> digits = load_digits(rng=0)
    >>> digits.train_images.shape, digits.test_images.shape
    ((1438, 64), (359, 64))
    """
    try:
        import sklearn.datasets
    except ImportError as error:
        raise ImportError(
            'the 8 x 8 digits need scikit-learn, which is not installed: pip install "steepest[experiments]"'
        ) from error
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(rng).permutation(len(labels))
    images = (pixels[order] / 16.0).astype(np.float32)
    labels = labels[order].astype(np.uint8)
    n_test = len(labels) // 5
    return Digits("digits 8x8", images[n_test:], labels[n_test:], images[:n_test], labels[:n_test])


def load_mnist(folder: str | Path) -> Digits:
    """The MNIST files (or others of the same form) in `folder`, plain or gzip-compressed.

    Parameters
    ----------
    folder : path
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, each plain or with ``.gz``.

    Returns
    -------
    Digits

    Raises
    ------
    FileNotFoundError
        A file is missing; the message names the four.
    ValueError
        A file is no IDX file of unsigned bytes, is damaged, or does not fit the others.
    """
    folder = Path(folder)
    images, labels = {}, {}
    for part in ("train", "test"):
        image_path, label_path = (_find(folder, _FILES[f"{part}_{kind}"]) for kind in ("images", "labels"))
        raw, labels[part] = read_idx(image_path, ndim=3), read_idx(label_path, ndim=1)
        if len(raw) != len(labels[part]) or len(raw) == 0:
            raise ValueError(
                f"expected as many images as labels, at least one; got {len(raw)} images in {image_path} "
                f"and {len(labels[part])} labels in {label_path}"
            )
        if labels[part].max() >= _CLASSES:
            raise ValueError(f"expected labels 0 to {_CLASSES - 1}, got {labels[part].max()} in {label_path}")
        images[part] = raw.reshape(len(raw), -1).astype(np.float32) / np.float32(255.0)
    if images["train"].shape[1] != images["test"].shape[1]:
        raise ValueError(
            "expected training and test images of one size, got "
            f"{images['train'].shape[1]} and {images['test'].shape[1]} pixels in {folder}"
        )
    return Digits("MNIST", images["train"], labels["train"], images["test"], labels["test"])


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    expected = ", ".join(_FILES.values())
    raise FileNotFoundError(f"no {name} (or {name}.gz) in {folder}; expected the MNIST files {expected}")


def read_idx(path: str | Path, *, ndim: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    The header is two zero bytes, the type code, the number of dimensions, and each dimension as a big-endian
    32-bit number. Everything is checked, and never more is read than the header announces.

    Parameters
    ----------
    path : path
        Plain, or gzip-compressed (told by its first bytes, not by its name).
    ndim : int
        Dimensions expected: 3 for images, 1 for labels.

    Returns
    -------
    ndarray, uint8

    Raises
    ------
    ValueError
        Wrong magic number, type or number of dimensions; too short or too long; damaged compression.
    """
    path = Path(path)
    with path.open("rb") as probe:
        compressed = probe.read(2) == b"\x1f\x8b"
    try:
        if compressed:
            with gzip.open(path, "rb") as unpacked:
                return _parse_idx(unpacked, path, ndim)
        with path.open("rb") as plain:
            return _parse_idx(plain, path, ndim)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error}); fetch it again") from error


def _parse_idx(stream: BinaryIO | gzip.GzipFile, path: Path, ndim: int) -> NDArray[np.uint8]:
    header = stream.read(4 + 4 * ndim)
    magic = bytes([0, 0, _UNSIGNED_BYTE, ndim])
    if header[:4] != magic:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes with {ndim} dimension(s): "
            f"expected it to begin with {magic.hex()}, got {header[:4].hex()}"
        )
    if len(header) < 4 + 4 * ndim:
        raise ValueError(f"{path} ends within its header: expected {4 + 4 * ndim} bytes, got {len(header)}")
    shape = tuple(int.from_bytes(header[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(ndim))
    expected = math.prod(shape)
    # In chunks: a damaged header may announce any size, and memory follows what is there, not what is
    # announced.
    content = bytearray()
    while len(content) <= expected:
        chunk = stream.read(min(_CHUNK, expected + 1 - len(content)))
        if not chunk:
            break
        content += chunk
    if len(content) != expected:
        found = f"only {len(content)}" if len(content) < expected else "more"
        raise ValueError(f"{path} announces {shape}: expected {expected} bytes after the header, got {found}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
