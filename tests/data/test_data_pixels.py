"""The decoder of image files against the values that were written, by Pillow or by hand."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from jaxgen.data import pixels
from jaxgen.data.folder import decode, folder
from jaxgen.data.pixels import UndecodableError, opened, png, with_channels
from jaxgen.errors import UsageError

CHANCE = np.random.default_rng(0)
GREY = CHANCE.integers(0, 256, (6, 5), np.uint8)
RGB = CHANCE.integers(0, 256, (6, 5, 3), np.uint8)
RGBA = CHANCE.integers(0, 256, (6, 5, 4), np.uint8)


def raw_png(rows: bytes, width: int, height: int, bits: int, kind: int, **chunks: bytes) -> bytes:
    """A PNG file written by hand; rows: unfiltered scan lines, a zero byte before each."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    body = [chunk(name.encode(), data) for name, data in chunks.items()]
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), *body]
        + [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


def lines(array: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in array)


def read(tmp_path, data: bytes, name: str = "x.png") -> np.ndarray:
    (tmp_path / name).write_bytes(data)
    return np.asarray(opened(tmp_path / name))


def saved(tmp_path, image: Image.Image, name: str, **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    return np.asarray(opened(tmp_path / name))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "tga", "ppm", "PNG"])
def test_bytes_come_back_whatever_the_format(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    found = saved(tmp_path, Image.fromarray(RGB), f"x.{suffix}", **options)
    np.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_what_is_written_is_read(tmp_path, channels):
    image = RGBA[..., :channels]
    found = read(tmp_path, png(image, {"labels": "dog, h\u00e9ron"}))
    np.testing.assert_array_equal(found.reshape(image.shape), image)
    with Image.open(tmp_path / "x.png") as file:
        assert file.text["labels"] == "dog, h\u00e9ron"


def test_colours_under_alpha_are_mixed_with_the_background_by_the_formula(tmp_path):
    found = opened_bytes(tmp_path, RGBA)
    c, a = RGBA[..., :3].astype(float), RGBA[..., 3:].astype(float)
    for name, behind in (("white", 255.0), ("black", 0.0), ("#808080", 128.0), ((7, 7, 7), 7.0)):
        mixed = np.asarray(with_channels(found, 3, name))
        assert np.abs(mixed - (c * a + behind * (255 - a)) / 255).max() <= 0.5
    hidden = RGBA.copy()
    hidden[..., 3] = 0
    for channels, want in ((1, [255]), (2, [255, 0]), (3, [255] * 3), (4, [255, 255, 255, 0])):
        file = tmp_path / "hidden.png"
        file.write_bytes(png(hidden))
        for size in (5, 3, 11):
            assert (decode(file, size, channels) == want).all()
    black = decode(tmp_path / "hidden.png", 4, 3, "black")
    assert (black == 0).all()


def opened_bytes(tmp_path, image):
    (tmp_path / "a.png").write_bytes(png(image))
    return opened(tmp_path / "a.png")


def test_hidden_colours_do_not_bleed_when_resized(tmp_path):
    """Opaque grey beside clear red: no red anywhere, at any size."""
    image = np.zeros((16, 16, 4), np.uint8)
    image[:, :8] = [100, 100, 100, 255]
    image[:, 8:] = [255, 0, 0, 0]
    (tmp_path / "x.png").write_bytes(png(image))
    for channels, size in ((3, 7), (4, 7), (3, 16), (4, 5)):
        found = decode(tmp_path / "x.png", size, channels, "#646464").astype(int)
        # Bicubic overshoots at an edge of alpha, which ends at 255 where the colour goes on.
        seen = found[found[..., -1] > 60] if channels == 4 else found
        assert np.abs(seen[..., :3] - 100).max() <= (10 if channels == 4 else 1)


@pytest.mark.parametrize(("bits", "key"), [(1, 1), (2, 2), (4, 9), (8, 200)])
def test_a_transparent_grey_is_that_grey_of_the_file(tmp_path, bits, key):
    """PNG's tRNS is in units of the file's bits, which Pillow spreads over 0..255."""
    values = (np.arange(16).reshape(2, 8) % 2**bits).astype(np.uint8)
    values = np.where(values == 0, key, values).astype(np.uint8)
    per = 8 // bits
    packed = np.zeros((2, 8 // per), np.uint8)
    for i in range(per):
        packed |= (values[:, i::per].astype(int) << (8 - bits * (i + 1))).astype(np.uint8)
    data = raw_png(lines(packed), 8, 2, bits, 0, tRNS=struct.pack(">H", key))
    found = read(tmp_path, data)
    np.testing.assert_array_equal(found[..., 1] == 0, values == key)
    np.testing.assert_array_equal(found[..., 0], values.astype(int) * 255 // (2**bits - 1))


def test_transparent_colours_and_palette_entries_become_alpha(tmp_path):
    image = RGB.copy()
    image[2, 3] = [1, 2, 3]
    data = raw_png(lines(image), 5, 6, 8, 2, tRNS=struct.pack(">HHH", 1, 2, 3))
    found = read(tmp_path, data)
    np.testing.assert_array_equal(found[..., :3], image)
    assert found[2, 3, 3] == 0 and (found[..., 3] == 255).sum() == 29
    palette = bytes(range(12))
    indices = np.array([[0, 1, 2, 3]], np.uint8)
    data = raw_png(lines(indices), 4, 1, 8, 3, PLTE=palette, tRNS=bytes([255, 0, 77]))
    expected = np.concatenate([np.arange(12).reshape(4, 3), [[255], [0], [77], [255]]], 1)
    np.testing.assert_array_equal(read(tmp_path, data)[0], expected)
    grey16 = (np.arange(30).reshape(6, 5) * 2003).astype(">u2")
    data = raw_png(lines(grey16), 5, 6, 16, 0, tRNS=struct.pack(">H", 2003 * 4))
    found = read(tmp_path, data)
    np.testing.assert_array_equal(found[..., 0], grey16 >> 8)
    np.testing.assert_array_equal(found[..., 1] == 0, grey16 == 2003 * 4)
    deep = (RGB.astype(">u2") * 257).astype(">u2")
    data = raw_png(lines(deep), 5, 6, 16, 2, tRNS=struct.pack(">HHH", 1, 2, 3))
    with pytest.raises(UndecodableError, match="16-bit colours"):
        read(tmp_path, data)


def test_of_sixteen_bits_the_upper_eight_stay(tmp_path):
    wide = CHANCE.integers(0, 65536, (6, 5), np.uint16)
    for name in ("x.png", "x.tiff", "x.jp2"):
        options = {"irreversible": False} if name.endswith("jp2") else {}
        np.testing.assert_array_equal(
            saved(tmp_path, Image.fromarray(wide), name, **options), wide >> 8
        )
    deep = CHANCE.integers(0, 65536, (6, 5, 3)).astype(">u2")
    np.testing.assert_array_equal(read(tmp_path, raw_png(lines(deep), 5, 6, 16, 2)), deep >> 8)
    data = b"P5 5 6 65535\n" + wide.astype(">u2").tobytes()
    np.testing.assert_array_equal(read(tmp_path, data, "x.pgm"), wide >> 8)
    data = b"P5 5 6 1023\n" + (wide % 1024).astype(">u2").tobytes()
    assert np.abs(read(tmp_path, data, "x.pgm") - (wide % 1024) * (255 / 1023)).max() <= 1
    # White is zero: TIFF's photometric interpretation 0, which Pillow leaves as it is.
    image = Image.fromarray(wide)
    found = saved(tmp_path, image, "white.tiff", tiffinfo={262: 0})
    np.testing.assert_array_equal(found, (65535 - wide.astype(int)) >> 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.tiff", "x.webp"])
def test_exif_orientation_is_applied(tmp_path, orientation, name):
    upright = np.arange(30, dtype=np.uint8).reshape(6, 5)
    # What a camera stores for each orientation (EXIF 2.3, table 4.6.4, tag 274).
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    if name.endswith("webp"):
        found = saved(tmp_path, image.convert("RGB"), name, exif=exif, lossless=True)[..., 0]
    else:
        found = saved(tmp_path, image, name, exif=exif)
    np.testing.assert_array_equal(found, upright)


def test_damaged_exif_says_nothing(tmp_path):
    image = Image.fromarray(GREY)
    found = saved(tmp_path, image, "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk")
    np.testing.assert_array_equal(found, GREY)


def test_other_modes_become_the_colours_that_they_mean(tmp_path):
    flat = np.full((8, 8, 4), [0, 255, 255, 0], np.uint8)  # no cyan, all magenta and yellow: red
    red = Image.fromarray(flat, "CMYK")
    for name in ("x.jpg", "x.tiff"):
        assert np.abs(saved(tmp_path, red, name).astype(int) - [255, 0, 0]).max() <= 4
    # As Adobe writes them: inverted, with its marker.
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.mode == "CMYK" and image.info.get("adobe") is not None
    green = Image.new(
        "YCbCr", (8, 8), Image.new("RGB", (1, 1), (0, 255, 0)).convert("YCbCr").getpixel((0, 0))
    )
    for name in ("x.jpg", "x.tiff"):
        assert np.abs(saved(tmp_path, green, name).astype(int) - [0, 255, 0]).max() <= 4
    bits = Image.fromarray(GREY > 128)
    np.testing.assert_array_equal(saved(tmp_path, bits, "x.png"), (GREY > 128) * 255)
    np.testing.assert_array_equal(saved(tmp_path, bits, "x.tiff"), (GREY > 128) * 255)
    gif = saved(tmp_path, Image.fromarray(RGB).quantize(30), "x.gif")
    np.testing.assert_array_equal(gif, np.asarray(Image.fromarray(RGB).quantize(30).convert("RGB")))
    # Alpha that colours are multiplied by already: TIFF's ExtraSamples 1 (338).
    straight = np.array([[[200, 100, 50, 255], [200, 100, 50, 128]]], np.uint8)
    stored = np.asarray(Image.fromarray(straight).convert("RGBa"))
    image = Image.fromarray(np.ascontiguousarray(stored))
    image.save(tmp_path / "x.tiff")
    data = (tmp_path / "x.tiff").read_bytes()
    entry = struct.pack("<HHLL", 338, 3, 1, 2)
    assert data.count(entry) == 1
    found = read(tmp_path, data.replace(entry, struct.pack("<HHLL", 338, 3, 1, 1)), "y.tiff")
    assert np.abs(found.astype(int) - straight).max() <= 1


def refused(tmp_path, name, **written):
    path = tmp_path / name
    image = written.pop("image", None)
    if image is None:
        path.write_bytes(written.pop("data"))
    else:
        image.save(path, **written)
    with pytest.raises(UndecodableError) as caught:
        opened(path)
    return str(caught.value)


def test_what_has_no_one_meaning_is_refused_with_a_reason(tmp_path):
    floats = Image.fromarray(CHANCE.uniform(size=(4, 4)).astype(np.float32))
    assert "floats" in refused(tmp_path, "f.tiff", image=floats)
    wide = Image.fromarray(np.full((4, 4), 70000, np.int32))
    assert "range" in refused(tmp_path, "i.tiff", image=wide)
    lab = ImageCms.profileToProfile(
        Image.fromarray(RGB), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )  # fmt: skip
    assert "CIELAB" in refused(tmp_path, "lab.tiff", image=lab)
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy()), Image.fromarray(255 - RGB)]
    for name in ("a.gif", "a.webp", "a.tiff", "a.png"):
        reason = refused(tmp_path, name, image=frames[0], save_all=True, append_images=frames[1:])
        assert "3 frames" in reason
    assert "empty" in refused(tmp_path, "e.png", data=b"")
    assert "no image" in refused(tmp_path, "t.jpg", data=b"no image at all")
    whole = io.BytesIO()
    noise = Image.fromarray(CHANCE.integers(0, 256, (64, 64, 3), np.uint8))
    for kind in ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM"):
        whole = io.BytesIO()
        noise.save(whole, kind)
        assert refused(tmp_path, f"cut.{kind.lower()}", data=whole.getvalue()[: whole.tell() // 2])
    bomb = raw_png(b"", 40000, 40000, 8, 0)
    assert "decompression bomb" in refused(tmp_path, "bomb.png", data=bomb)


def test_the_photograph_of_a_camera_with_a_second_picture_is_the_first(tmp_path):
    one, other = Image.fromarray(np.full((8, 8, 3), 40, np.uint8)), Image.new("RGB", (8, 8))
    one.save(tmp_path / "x.mpo", save_all=True, append_images=[other])
    assert np.abs(np.asarray(opened(tmp_path / "x.mpo")).astype(int) - 40).max() <= 2


def test_the_content_says_what_a_file_is_and_not_its_name(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, png(RGB), "x.jpg"), RGB)


def test_extensions_are_pillows_and_no_other_programs():
    assert {".jfif", ".jpg", ".png", ".webp", ".tif", ".gif", ".jp2", ".bmp"} <= pixels.extensions()
    assert not {".eps", ".mpg", ".h5", ".pdf", ".txt"} & pixels.extensions()


def test_the_same_file_is_the_same_bytes_for_training_and_for_scoring(tmp_path):
    from jaxgen.metrics.sets.reading import load

    chance = np.random.default_rng(5)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            image = chance.integers(0, 256, (8, 8, 2 + 2 * (i % 2)), np.uint8)
            (tmp_path / name / f"{i}.png").write_bytes(png(image))
    for channels in (1, 2, 3, 4):
        for background in ("white", "black"):
            source = folder(str(tmp_path), 8, channels=channels, background=background)
            found = load(tmp_path, option="--x", channels=channels, background=background)
            np.testing.assert_array_equal(source.images(np.arange(6)), found.images)
            np.testing.assert_array_equal(source.labels, found.labels)


def test_a_background_is_a_colour(tmp_path):
    with pytest.raises(UsageError, match="source.background: got 'whit'"):
        folder(str(tmp_path), 8, background="whit")
