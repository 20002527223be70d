"""Contact sheets of the data's images: for a page that shows each tile, and as one picture for Markdown."""

from __future__ import annotations

import base64
import io

import numpy as np

from cifar_ray.reporting.parts import Sheet

LARGEST_PNG = 32
"""Height in pixels up to which tiles keep every pixel; larger ones are photographs, which JPEG makes smaller."""
GAP = 2
"""Pixels between images side by side."""


def pixels_of(image: np.ndarray) -> np.ndarray:
    """An image (C, H, W) uint8 of the data as pixels (H, W), or (H, W, 3) where it has colours."""
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def strip(images: list[np.ndarray], num_places: int) -> np.ndarray:
    """Images of equal pixels (H, W, ...) side by side, on white; places without an image stay empty."""
    height, width, *colours = images[0].shape
    page = np.full((height, num_places * (width + GAP) - GAP, *colours), 255, np.uint8)
    for i, image in enumerate(images):
        page[:, i * (width + GAP) : i * (width + GAP) + width] = image
    return page


def data_uri(pixels: np.ndarray) -> str:
    """Pixels (H, W, ...) as the address of an image within a page."""
    from PIL import Image

    data, kind = io.BytesIO(), "png" if len(pixels) <= LARGEST_PNG else "jpeg"
    Image.fromarray(pixels).save(data, kind, **({"optimize": True} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def sheet_png(sheet: Sheet) -> bytes:
    """All tiles of a sheet in rows, on white, small ones enlarged."""
    from PIL import Image

    height, width = (max(tile.pixels.shape[axis] for tile in sheet.tiles) for axis in (0, 1))
    scale, gap = max(64 // height, 1), 8
    num_columns = max(900 // (scale * width + gap), 1)
    num_rows = -(-len(sheet.tiles) // num_columns)
    page = np.full((num_rows * (scale * height + gap), num_columns * (scale * width + gap), 3), 255, np.uint8)
    for i, tile in enumerate(sheet.tiles):
        pixels = tile.pixels if tile.pixels.ndim == 3 else tile.pixels[..., None]
        pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
        top, left = (i // num_columns) * (scale * height + gap), (i % num_columns) * (scale * width + gap)
        page[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    data = io.BytesIO()
    Image.fromarray(page).quantize(256).save(data, "PNG", optimize=True)
    return data.getvalue()
