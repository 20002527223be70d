"""Encoded images of any size and mode to arrays."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cifar_ray.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL import Image as PILImage


Encoded = TypeVar("Encoded", bound="bytes | Path")
T = TypeVar("T")

IMAGE_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # Pillow also opens EPS, by running Ghostscript

MAX_NATIVE_SIZE = 64  # larger images are resized unless the user asks for their size


def decode_image(data: bytes | Path, resize: dict[str, Any], name: str | None = None) -> np.ndarray:
    """Decode an image of any size and mode the way `resize` (see :class:`DataSplits`) says.

    It is turned as its EXIF orientation says, transparency is laid over white, 16-bit grayscale is scaled to 8 bits,
    and only the first frame counts. Unless it has the right size, the shorter side is resized and the centre cropped.

    A TIFF of 32-bit integers does not say what white is: `white_int32`, else 255 where no pixel is larger, and 65,535.

    Args:
        data: an encoded image or the path of one.
        resize: has `channels`, `image_size` and perhaps `white_int32`; the same for both values of `rule`.
        name: stands for the image in messages.

    Returns:
        (C, S, S) uint8, C-contiguous.

    Raises:
        InputError: this is no complete image of a known format; the message is "name: reason".
    """
    from PIL import ImageOps

    size = resize["image_size"]
    with _open_image(name or (str(data) if isinstance(data, Path) else "image"), data) as image:
        image.draft(None, (2 * size, 2 * size))  # large JPEGs: decode at 1/2, 1/4 or 1/8, many times as fast
        image.load()
        with suppress(Exception):  # nothing is wrong with the pixels of an image whose EXIF block is damaged
            ImageOps.exif_transpose(image, in_place=True)
        return to_array(fit_square(_to_8_bits(image, resize["channels"], resize.get("white_int32")), size))


@contextmanager
def map_images(
    function: Callable[[str, Encoded], T], images: Iterable[tuple[str, Encoded]]
) -> Iterator[Iterator[T | InputError]]:
    """Apply `function` to every (name, encoded image) in threads; give its results, or InputErrors, in order.

    A few hundred images are read ahead, so that any number of them fits into memory.
    """

    def run(chunk: list[tuple[str, Encoded]]) -> list[T | InputError]:
        results: list[T | InputError] = []
        for name, data in chunk:
            try:
                results.append(function(name, data))
            except InputError as error:
                results.append(error)
        return results

    def results() -> Iterator[T | InputError]:
        rest = iter(images)
        while batch := list(itertools.islice(rest, 512)):
            yield from itertools.chain.from_iterable(pool.map(run, (batch[i : i + 8] for i in range(0, len(batch), 8))))

    pool = ThreadPoolExecutor()  # Pillow lets go of the interpreter lock while it decodes and resizes
    try:
        yield results()
    finally:
        # A reader may stop half-way. The garbage collector would end the pool in any thread, also in one that holds a
        # lock which the end of another thread needs, and then wait for ever.
        pool.shutdown(cancel_futures=True)


def read_header(name: str, data: Path | bytes) -> tuple[bool, tuple[int, int], int | None]:
    """Return whether an image is gray, its width and height, and what seems to be white in a TIFF of 32-bit integers.

    Raises:
        InputError: as :func:`decode_image`, of which it reads no more than it must.
    """
    with _open_image(name, data) as image:
        is_gray = image.mode.startswith(("1", "L", "I", "F")) and image.mode != "LAB"
        return is_gray, image.size, _white_of_pixels(image) if _is_int32_tiff(image) else None


@contextmanager
def _open_image(name: str, data: Path | bytes) -> Iterator[PILImage.Image]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=IMAGE_FORMATS) as image:
            yield image
    except UnidentifiedImageError:  # its own message holds a memory address
        raise InputError(f"{name}: not an image of a known format") from None
    except Exception as error:  # of any kind: Pillow's decoders do not check all that they read
        raise InputError(f"{name}: {one_line(error)}") from None


def _is_int32_tiff(image: PILImage.Image) -> bool:
    return image.mode == "I" and image.format == "TIFF"  # mode I of other formats is 16 bits, scaled up if need be


def _white_of_pixels(image: PILImage.Image) -> int:
    """Return 255 or 65,535, what holds all pixels of a gray image of more than 8 bits."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("its 32-bit pixels have no known range")
    return 255 if values.max() <= 255 else 65535


def _to_8_bits(image: PILImage.Image, channels: int, white_int32: int | None) -> PILImage.Image:
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        white = _white_of_pixels(image)
        if not _is_int32_tiff(image):
            white = 65535
        elif white_int32 and white > white_int32:
            raise ValueError(f"its pixels are larger than {white_int32}, which is white in the training images")
        else:
            white = white_int32 or white
        scaled = np.rint(np.asarray(image) / (white / 255))  # Pillow's own conversion clips
        image = Image.fromarray(scaled.astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def fit_square(image: PILImage.Image, size: int) -> PILImage.Image:
    from PIL import Image

    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def to_array(image: PILImage.Image) -> np.ndarray:
    pixels = np.asarray(image)  # (H, W) or (H, W, C)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def take_images(part: Images, index: np.ndarray) -> Images:
    return Images(part.images[index], part.labels[index])


@dataclass(frozen=True)
class Images:
    """One split."""

    images: np.ndarray
    """(N, C, H, W) uint8, C-contiguous."""
    labels: np.ndarray
    """(N,) int64."""


# A data set whose images have their final size, before validation is carved.
@dataclass(frozen=True)
class Decoded:
    splits: dict[str, Images]  # "train", and "test" and "val" where the source has its own
    class_names: tuple[str, ...]
    resize: dict[str, Any]
    bad_images: tuple[str, ...] = ()
    val_is_test: bool = False  # the test split is what the source calls validation


# One split of a folder before decoding: the image files, or the parquet files and their image column.
@dataclass(frozen=True)
class EncodedSplit:
    labels: np.ndarray  # (N,) int64
    files: list[Path]
    column: str | None = None

    def images(self) -> Iterator[tuple[str, Path | bytes]]:
        """Yield (name for messages, encoded image) in the order of the labels, few at a time in memory."""
        if self.column is None:
            yield from ((str(file), file) for file in self.files)
            return
        for file in self.files:
            with open_parquet(file) as parquet:
                row = itertools.count()
                for batch in parquet.iter_batches(256, columns=[f"{self.column}.bytes"]):
                    for data in batch.column(0).field("bytes").to_pylist():
                        yield f"{file} row {next(row)}", data or b""


@contextmanager
def open_parquet(file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: cannot read the parquet file ({one_line(error)}); copy it anew") from None


def decode_splits(
    splits: dict[str, EncodedSplit],
    class_names: tuple[str, ...],
    image_size: int | None,
    auto_size: int,
    skip_bad_images: bool,
) -> Decoded:
    # All headers first, since together they decide how each image is decoded. Damaged ones are reported below.
    headers: set[tuple[bool, tuple[int, int], int | None]] = set()
    for split in splits.values():
        with map_images(read_header, split.images()) as results:
            headers.update(header for header in results if not isinstance(header, InputError))
    sides = {side for _, size, _ in headers for side in size}
    native = image_size is None and len(sides) == 1 and max(sides) <= MAX_NATIVE_SIZE
    size = max(sides) if native else image_size or auto_size
    channels = 1 if all(is_gray for is_gray, _, _ in headers) else 3
    resize = {"channels": channels, "image_size": size, "rule": "native" if native else "shorter_side_center_crop"}
    if whites := {white for _, _, white in headers if white is not None}:
        resize["white_int32"] = max(whites)  # one for all: a dark image of 16 bits holds no more than one of 8

    decoded, bad = {}, []
    for split_name, split in splits.items():
        images, good, bad_of_split = decode_split(split, resize, skip_bad_images)
        bad += bad_of_split
        decoded[split_name] = Images(images, split.labels) if good.all() else Images(images[good], split.labels[good])
    return Decoded(decoded, class_names, resize, tuple(bad))


def decode_split(
    split: EncodedSplit, resize: dict[str, Any], skip_bad_images: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return images (N, C, S, S) uint8, which of them (N,) could be read, and what is wrong with the others.

    Raises:
        InputError: one cannot be read, and `skip_bad_images` does not let it be left out.
    """
    size, bad = resize["image_size"], []
    images = np.empty((len(split.labels), resize["channels"], size, size), dtype=np.uint8)
    good = np.zeros(len(images), dtype=bool)
    with map_images(lambda name, data: decode_image(data, resize, name), split.images()) as results:
        for i, image in enumerate(results):
            if not isinstance(image, InputError):
                images[i], good[i] = image, True
            elif skip_bad_images:
                bad.append(str(image))
            else:
                raise InputError(f"{image}; repair or remove it, or pass --skip-bad-images")
    return images, good, bad
