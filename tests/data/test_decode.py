"""One image of any size and mode: its colours, its shape, and what is told where it is damaged."""

from __future__ import annotations

import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.images import encode, noise
from PIL import Image

from cifar_ray.data.decode import decode_image, map_images
from cifar_ray.errors import InputError

RGB = {"channels": 3, "image_size": 4, "rule": "shorter_side_center_crop"}

GRAY = RGB | {"channels": 1}


def palette(kind: str = "PNG", **options: object) -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return encode(image, kind, **options)


def png_16_bit(color_type: int, *samples: int) -> bytes:
    """A PNG with 16 bits a channel, which Pillow cannot write but for gray: 4x4 pixels of one colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = b"\0" + struct.pack(f">{len(samples)}H", *samples) * 4
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")


SIXTEEN_BIT = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))


@pytest.mark.parametrize(
    ("content", "color"),
    [
        pytest.param(encode(Image.new("L", (4, 4), 90)), (90, 90, 90), id="L"),
        pytest.param(encode(Image.new("1", (4, 4), 1)), (255, 255, 255), id="1"),
        pytest.param(encode(Image.new("RGB", (4, 4), (200, 100, 50))), (200, 100, 50), id="RGB"),
        pytest.param(encode(Image.new("RGBA", (4, 4), (200, 100, 50, 255))), (200, 100, 50), id="opaque"),
        pytest.param(encode(Image.new("RGBA", (4, 4), (200, 100, 50, 0))), (255, 255, 255), id="transparent"),
        pytest.param(encode(Image.new("RGBA", (4, 4), (200, 100, 50, 51))), (244, 224, 214), id="half transparent"),
        pytest.param(encode(Image.new("LA", (4, 4), (100, 51))), (224, 224, 224), id="LA"),
        pytest.param(palette(), (200, 100, 50), id="palette"),
        pytest.param(palette(transparency=1), (255, 255, 255), id="transparent palette"),
        pytest.param(encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), (255, 0, 0), id="CMYK TIFF"),
        pytest.param(encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"), (255, 0, 0), id="CMYK JPEG"),
        pytest.param(encode(SIXTEEN_BIT), (128, 128, 128), id="16 bit PNG"),
        pytest.param(png_16_bit(2, 0xC8FF, 0x6480, 0x3200), (200, 100, 50), id="16 bit RGB PNG"),
        pytest.param(png_16_bit(4, 0x6464, 0x3333), (224, 224, 224), id="16 bit LA PNG"),
        pytest.param(png_16_bit(6, 0xC8C8, 0x6464, 0x3232, 0x3333), (244, 224, 214), id="16 bit RGBA PNG"),
        pytest.param(encode(SIXTEEN_BIT, "TIFF"), (128, 128, 128), id="16 bit TIFF"),
        pytest.param(b"P5 4 4 65535\n" + b"\x80\x00" * 16, (128, 128, 128), id="16 bit PGM"),
        pytest.param(b"P5 4 4 1023\n" + b"\x02\x00" * 16, (128, 128, 128), id="10 bit PGM"),
        pytest.param(b"P6 4 4 65535\n" + b"\xc8\xff\x64\x80\x32\x00" * 16, (200, 100, 50), id="16 bit PPM"),
        pytest.param(palette("GIF"), (200, 100, 50), id="GIF"),
    ],
)
def test_decode_modes(tmp_path: Path, content: bytes, color: tuple[int, int, int]) -> None:
    image = decode_image(content, RGB)
    assert (image.shape, image.dtype, image.flags.c_contiguous) == ((3, 4, 4), np.uint8, True)
    assert np.abs(image.astype(int) - np.array(color)[:, None, None]).max() <= 2
    assert abs(decode_image(content, GRAY).mean() - np.dot(color, (0.299, 0.587, 0.114))) <= 2
    (tmp_path / "x.png").write_bytes(content)
    assert np.array_equal(decode_image(tmp_path / "x.png", RGB), image)


def int32_tiff(*values: int) -> bytes:
    """A TIFF of 32-bit integers, 4x4 pixels."""
    return encode(Image.fromarray(np.resize(np.array(values, dtype=np.int32), (4, 4))), "TIFF")


@pytest.mark.parametrize(
    ("content", "white", "expected"),
    [
        pytest.param(int32_tiff(0, 90, 200, 255), None, [0, 90, 200, 255], id="8 bits"),
        pytest.param(int32_tiff(0, 256, 32768, 65535), None, [0, 1, 128, 255], id="16 bits"),
        pytest.param(int32_tiff(0, 90, 200, 255), 255, [0, 90, 200, 255], id="8 bits, as in training"),
        pytest.param(int32_tiff(0, 90, 200, 255), 65535, [0, 0, 1, 1], id="16 bits as in training, dark"),
        pytest.param(b"P5 4 4 65535\n" + b"\x00\xff" * 16, None, [1, 1, 1, 1], id="dark 16 bit PGM"),
        pytest.param(b"P5 4 4 65535\n" + b"\x80\x00" * 16, 255, [128] * 4, id="16 bit PGM beside 8 bits"),
    ],
)
def test_integers_of_32_bits(content: bytes, white: int | None, expected: list[int]) -> None:
    resize = GRAY if white is None else GRAY | {"white_int32": white}
    assert decode_image(content, resize)[0, 0].tolist() == expected


def test_what_is_whiter_than_white_is_refused() -> None:
    with pytest.raises(InputError, match=r"^image: its pixels are larger than 255, which is white in the training"):
        decode_image(int32_tiff(0, 256), GRAY | {"white_int32": 255})
    for value in (-1, 65536):
        with pytest.raises(InputError, match=r"^image: its 32-bit pixels have no known range"):
            decode_image(int32_tiff(0, value), GRAY)


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (900, 300), (3, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_decode_keeps_the_centre(size: tuple[int, int], kind: str) -> None:
    """Of three bands along the longer side only the middle one is left."""
    bands = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    bands = bands if size[0] > size[1] else bands.transpose(1, 0, 2)
    image = Image.fromarray(bands).resize(size, Image.Resampling.NEAREST)
    got = decode_image(encode(image, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {})), RGB)
    if min(size) >= 10:  # of smaller ones the bands run into each other
        middle = got[:, :, 1:3] if size[0] > size[1] else got[:, 1:3]
        assert np.abs(middle.astype(int) - np.array([0, 255, 0])[:, None, None]).max() < 30
    assert got.shape == (3, 4, 4)


def test_decode_of_the_right_size_is_lossless() -> None:
    image = noise(3, (4, 4))
    assert np.array_equal(decode_image(encode(image), RGB).transpose(1, 2, 0), np.asarray(image))


@pytest.mark.parametrize("side", [8, 512])
def test_decode_turns_as_exif_says(side: int) -> None:
    image = Image.new("L", (side, side), 0)
    image.paste(255, (0, 0, side // 2, side // 2))  # top left
    for orientation, (row, column) in {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 6: (0, 1), 8: (1, 0)}.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        quarters = decode_image(encode(image, "JPEG", exif=exif), GRAY | {"image_size": 2})[0]
        assert np.unravel_index(quarters.argmax(), (2, 2)) == (row, column)


def test_damaged_exif_does_not_matter() -> None:
    image = noise(4, (4, 4))
    assert np.array_equal(decode_image(encode(image, exif=b"Exif\0\0nonsense"), RGB), decode_image(encode(image), RGB))


def test_decode_image_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{tmp_path / 'x.png'}: No such file or directory$"):
        decode_image(tmp_path / "x.png", RGB)
    with pytest.raises(InputError, match=r"^image: not an image of a known format$"):
        decode_image(b"hello", RGB)


def test_images_in_threads_keep_their_order() -> None:
    images = [encode(Image.new("L", (4, 4), i % 256)) if i % 7 else b"hello" for i in range(1300)]
    named = ((f"image {i}", data) for i, data in enumerate(images))
    with map_images(lambda name, data: decode_image(data, GRAY, name), named) as results:
        for i, result in enumerate(results):
            if i % 7:
                assert isinstance(result, np.ndarray) and (result == i % 256).all()
            else:
                assert str(result) == f"image {i}: not an image of a known format"
    assert i == 1299


def test_a_reader_that_stops_half_way_leaves_no_thread() -> None:
    done, go_on = [], threading.Event()

    def decode(name: str, data: bytes) -> None:
        done.append(name)
        if len(done) > 8:  # more than comes at once
            go_on.wait()

    threads = threading.active_count()
    with map_images(decode, ((str(i), b"") for i in range(5000))) as results:
        next(results)
        assert threading.active_count() > threads
        timer = threading.Timer(1, go_on.set)
        timer.start()
    timer.join()
    assert threading.active_count() == threads
    assert len(done) < 512, "what was read ahead is given up"
