"""Pixels: the one decoder of image files, the one encoder, and what the numbers of arrays mean.

Training, scoring and tokenizing all read image files through `opened` and `with_channels`, so that
a file is the same bytes everywhere. What Pillow would clip or guess is refused with a reason.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from jaxgen.errors import invalid

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by the number of channels: grey, grey and alpha, colours, colours and alpha."""
BACKGROUND = "white"
RANGES = {"-1,1": (-1.0, 1.0), "0,1": (0.0, 1.0), "0,255": (0.0, 255.0)}
"""What the numbers of an array can run from and to, by the name that options have for it."""
# Identified but not decoded by Pillow itself, or only by running another program.
_NO_PICTURES = frozenset(["BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"])
# Several pictures in a file, of which the first is the photograph or the flattened picture.
_FIRST_IS_THE_PICTURE = frozenset(["MPO", "PSD"])
_SIXTEEN_BITS = frozenset(["JPEG2000", "PNG", "PPM", "TIFF"])
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


class UndecodableError(ValueError):
    """A file that is not, or not unambiguously, one picture of 8-bit channels; says why."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow decodes, in the order in which it tries them."""
    Image.init()
    return tuple(name for name in Image.ID if name in Image.OPEN and name not in _NO_PICTURES)


@functools.cache
def extensions() -> frozenset[str]:
    """The extensions of `formats`, in small letters, with their dots."""
    known = Image.registered_extensions().items()
    return frozenset(extension.lower() for extension, name in known if name in formats())


def opened(file: str | Path) -> Image.Image:
    """The picture in a file, upright, in mode L, LA, RGB or RGBA: 8 bits a channel.

    The content decides what a file is, not its name. EXIF orientation is applied. Of 16 bits a
    channel the upper 8 stay. Transparency, of whatever kind (alpha, premultiplied alpha, a
    transparent colour or palette entry), becomes straight alpha. CMYK and YCbCr become RGB by
    Pillow's formulas, and embedded colour profiles are not applied, as is the custom of data sets
    and of the published scores. Raises UndecodableError for what is damaged or cut off, larger than
    Pillow's limit against decompression bombs, of several frames, and for values whose range no
    standard says (floats, 32-bit integers, CIELAB).
    """
    try:
        return decoded(Path(file).read_bytes())
    except OSError as error:
        raise UndecodableError(str(error)) from error


def decoded(data: bytes) -> Image.Image:
    """As `opened`, of a file's bytes."""
    try:
        if not data:
            raise UndecodableError("an empty file")
        # Not by name: Pillow maps raw files into memory, and turned TIFFs come out scrambled.
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format not in _FIRST_IS_THE_PICTURE:
                raise UndecodableError(f"{frames} frames, where one picture is wanted")
            rawmode = _rawmode(image)
            image.load()
            return _upright(_eight_bits(image, rawmode), image)
    except UndecodableError:
        raise
    except UnidentifiedImageError as error:
        raise UndecodableError("no image of a format that is decoded") from error
    # Damaged files make Pillow's plugins raise whatever they stumble over.
    except Exception as error:
        raise UndecodableError(str(error) or type(error).__name__) from error


def _rawmode(image: Image.Image) -> str:
    """How samples lie in the file, as Pillow names it ("L;2", "RGB;16B"); "" where it is unsaid."""
    tiles: Any = getattr(image, "tile", None)
    args: Any = tiles[0][3] if tiles else ""
    args = args[0] if isinstance(args, tuple) and args else args
    return args if isinstance(args, str) else ""


def _upright(picture: Image.Image, original: Image.Image) -> Image.Image:
    """The picture as the original's EXIF orientation says; damaged EXIF says nothing."""
    try:
        orientation = original.getexif().get(0x0112, 1)
    except Exception:
        return picture
    if orientation not in range(2, 9):
        return picture
    picture.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(picture)


def _eight_bits(image: Image.Image, rawmode: str) -> Image.Image:
    """A loaded image as L, LA, RGB or RGBA."""
    mode, key = image.mode, image.info.get("transparency")
    if mode.startswith("I"):
        values, top = _wide(image)
        grey = (values >> 8).astype(np.uint8)
        return _keyed(grey, values, key, top) if key is not None else Image.fromarray(grey)
    if mode in ("1", "L"):
        grey = np.asarray(image.convert("L"))
        if key is None:
            return Image.fromarray(grey)
        # Pillow spreads 2 and 4 bits over 0..255; the transparent value is as in the file.
        scaled = key * {"L;2": 85, "L;4": 17}.get(rawmode, 1) if image.format == "PNG" else key
        return _keyed(grey, grey, scaled, 255)
    if mode == "RGB" and key is not None:
        if ";16" in rawmode:
            raise UndecodableError("16-bit colours with a transparent one: save it with alpha")
        colours = np.asarray(image)
        return _keyed(colours, colours, key, 255)
    if mode in ("P", "PA"):
        clear = mode == "PA" or key is not None
        return _plain(image.convert("RGBA" if clear else "RGB"))
    if mode in ("LA", "RGB", "RGBA"):
        return _plain(image)
    if mode in _AS:
        return _plain(image.convert(_AS[mode]))
    raise UndecodableError(f"{_NAMES.get(mode, f'mode {mode}')}: save it with 8 bits a channel")


_AS = {"La": "LA", "RGBa": "RGBA", **dict.fromkeys(("CMYK", "HSV", "RGBX", "YCbCr"), "RGB")}
_NAMES = {"F": "floats, whose range nobody says", "LAB": "CIELAB colours"}


def _plain(image: Image.Image) -> Image.Image:
    """A copy without the file's metadata."""
    return Image.fromarray(np.asarray(image))


def _wide(image: Image.Image) -> tuple[np.ndarray, int]:
    """Grey of more than 8 bits as integers from 0 to 65535, and the file's own largest value."""
    values = np.asarray(image).astype(np.int64)
    whole = image.mode != "I" or image.format in ("PNG", "PPM")
    if image.format not in _SIXTEEN_BITS or not whole:
        raise UndecodableError("integers of more than 8 bits, whose range nobody says")
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0] if image.format == "TIFF" else 16
    top = 2**bits - 1
    values = values * 65535 // top
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 65535 - values
    if values.min() < 0 or values.max() > 65535:
        raise UndecodableError("integers beyond 16 bits, whose range nobody says")
    return values, top


def _keyed(pixels: np.ndarray, values: np.ndarray, key: Any, top: int) -> Image.Image:
    """Pixels [H, W(, 3)] with alpha 0 where the file's `values` are the transparent ones."""
    if not isinstance(key, (int, tuple)) or np.max(key) > top:
        raise UndecodableError(f"a transparent colour {key!r}, where the largest value is {top}")
    same = values == np.asarray(key)
    clear = same if values.ndim == 2 else same.all(-1)
    parts = pixels[..., None] if pixels.ndim == 2 else pixels
    alpha = np.where(clear, 0, 255).astype(np.uint8)[..., None]
    return of_pixels(np.concatenate([parts, alpha], -1))


def with_channels(image: Image.Image, channels: int, background: Any = BACKGROUND) -> Image.Image:
    """An `opened` picture as 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels.

    Where alpha goes, colours are mixed with the background's, (c a + b (255 - a)) / 255, rounded.
    Where it stays, colours under alpha 0, which nobody sees, become the background's.
    background: as Pillow has colours, such as "white" or "#808080", or (red, green, blue).
    """
    red, green, blue = colour(background)
    behind = np.array([red, green, blue])
    pixels = np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        alpha = pixels[..., -1:].astype(np.int64)
        if image.mode == "LA":
            pixels = np.repeat(pixels[..., :1], 3, -1)
        shown = pixels[..., :3].astype(np.int64)
        if channels in (1, 3):
            mixed = ((shown * alpha + behind * (255 - alpha) + 127) // 255).astype(np.uint8)
            return Image.fromarray(mixed).convert(MODES[channels])
        hidden = np.where(alpha == 0, behind, shown)
        colours = Image.fromarray(hidden.astype(np.uint8)).convert(MODES[channels - 1])
        merged = np.asarray(colours).reshape(*alpha.shape[:2], channels - 1)
        return of_pixels(np.concatenate([merged, alpha.astype(np.uint8)], -1))
    # Not straight to LA, since grey of RGB is the same thing only in Pillow's "L".
    plain = image.convert("L" if channels < 3 else "RGB")
    return plain.convert(MODES[channels])


def colour(name: Any, option: str = "source.background") -> tuple[int, int, int]:
    """A colour's red, green and blue, 0 to 255. Raises UsageError for what is none."""
    if isinstance(name, (tuple, list)) and len(name) == 3:
        name = "rgb({},{},{})".format(*name)
    try:
        found = ImageColor.getrgb(name)
    except (ValueError, AttributeError, TypeError) as error:
        raise invalid(option, name, 'a colour such as "white", "#808080"') from error
    if len(found) != 3:
        raise invalid(option, name, "an opaque colour")
    return found


def of_pixels(pixels: np.ndarray) -> Image.Image:
    """Pixels uint8 [H, W, 1 to 4] as an image."""
    flat = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(flat))


def png(pixels: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Pixels uint8 [H, W, C], C from 1 to 4 as in `MODES`, as a PNG file's bytes.

    text: what the file says of itself, by keyword. `opened` gives the same pixels back.
    """
    from PIL.PngImagePlugin import PngInfo

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in MODES:
        raise invalid("picture", f"{pixels.dtype} {pixels.shape}", "uint8 [H, W, 1 to 4]")
    info = PngInfo()
    for keyword, said in (text or {}).items():
        info.add_itxt(keyword, said)
    buffer = io.BytesIO()
    of_pixels(pixels).save(buffer, format="PNG", optimize=True, pnginfo=info)
    return buffer.getvalue()


def text(file: str | Path | BinaryIO) -> dict[str, str]:
    """What a PNG file says of itself, by keyword; nothing is decoded, and {} of other files."""
    try:
        with Image.open(file, formats=("PNG",)) as image:
            return {str(k): str(v) for k, v in image.info.items() if isinstance(v, str)}
    except Exception:
        return {}


def channels_last(images: np.ndarray, option: str) -> np.ndarray:
    """Images [N, H, W] or [N, H, W, C] as [N, H, W, C].

    Raises UsageError for other shapes, and for what looks like [N, C, H, W]: 1 to 4 in second
    place, and not in last.
    """
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise invalid(option, images.shape, "a shape [N, H, W] or [N, H, W, C], N >= 1")
    if images.ndim == 3:
        return images[..., None]
    if images.shape[-1] not in MODES and images.shape[1] in MODES:
        hint = "Channels come last: transpose(0, 2, 3, 1)."
        raise invalid(option, images.shape, "images [N, H, W, C] with 1 to 4 channels", hint)
    return images


def scaled(
    images: np.ndarray, range: str | None, *, option: str, setting: str, name: str = ""
) -> np.ndarray:
    """Images of any numbers as bytes, or as floats in [-1, 1].

    range: one of `RANGES`, which bytes and floats with values below 0 need not say. Whole numbers
    from 0 to 255 become bytes. option, setting, name: what messages call the images, `range`, and
    the file. Raises UsageError for values out of range or not finite, and where the range is
    needed.
    """
    if range is not None and range not in RANGES:
        raise invalid(setting, range, ", ".join(RANGES))
    if images.dtype.kind not in "uif":
        raise invalid(option, f"{images.dtype}", f"uint8, or numbers with {setting}")
    low, high = float(images.min()), float(images.max())
    kind = "floats" if images.dtype.kind == "f" else str(images.dtype)
    given = f"{name + ': ' if name else ''}{kind} from {low:g} to {high:g}"
    asked = f"uint8 from 0 to 255, or floats with {setting} -1,1 or 0,1 or 0,255"
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise invalid(option, given, f"finite values ({asked})")
    # Bytes that are zeros and ones are pictures of two colours as often as nearly black ones.
    if images.dtype == np.uint8 and (high != 1 or range == "0,255"):
        return images
    if range is None:
        if images.dtype.kind != "f" or low >= 0:
            raise invalid(option, given, asked)
        range = "-1,1"
    least, most = RANGES[range]
    if low < least or high > most:
        raise invalid(option, given, f"values in [{least:g}, {most:g}] ({setting} {range})")
    if range == "0,255" and (images == np.floor(images)).all():
        return images.astype(np.uint8)
    if range == "-1,1":
        return images
    return (images.astype(np.float64) - least) / (most - least) * 2 - 1
