"""Images come out smaller, upright and without their secrets; bombs are refused before they unfold."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from callboard.errors import MissingExtra, Permanent
from services import images, storage
from services.images import Compressor, Format, ImageTooLarge, InvalidImage, InvalidRequest
from services.storage import InvalidKey, LocalStorage, ObjectNotFound, ObjectTooLarge

pytest.importorskip("PIL")

from PIL import ExifTags, Image, ImageCms, ImageDraw
from PIL.PngImagePlugin import PngInfo

RED, BLUE = (220, 20, 20), (20, 20, 220)


@pytest.fixture
def files(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "files")


@pytest.fixture
def compressor(files: LocalStorage) -> Compressor:
    return Compressor(storage=files, max_bytes=64_000_000, max_pixels=50_000_000)


def two_halves(width: int = 400, height: int = 200, mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), BLUE)
    ImageDraw.Draw(image).rectangle((0, 0, width // 2 - 1, height), fill=RED)
    return image.convert(mode)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def opened(files: LocalStorage, key: str) -> Image.Image:
    image = Image.open(io.BytesIO(files.read(key)))
    image.load()
    return image


def is_near(
    image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 40
) -> bool:
    pixel = image.convert("RGB").getpixel(place)
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


@pytest.mark.parametrize("format", ["webp", "avif", "jpeg"])
@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP"])
def test_an_image_becomes_smaller_in_each_format(
    compressor: Compressor, files: LocalStorage, source: str, format: Format
) -> None:
    data = encoded(two_halves(), source)
    files.put("in", data)

    report = compressor.compress("in", "out", format=format, max_width=100)

    image = opened(files, "out")
    assert image.format == format.upper()
    assert image.size == (100, 50) == (report.width, report.height)
    assert report.bytes_before == len(data)
    assert report.bytes_after == files.stat("out").size
    assert report.key == "out"
    assert is_near(image, (20, 25), RED) and is_near(image, (80, 25), BLUE)


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((None, None), (400, 200)),
        ((100, None), (100, 50)),
        ((None, 100), (200, 100)),
        ((100, 10), (20, 10)),
        ((4000, 4000), (400, 200)),
        ((400, 1), (2, 1)),
    ],
)
def test_an_image_fits_its_box_and_is_never_enlarged(
    compressor: Compressor, files: LocalStorage, box: tuple[int | None, int | None], size: tuple[int, int]
) -> None:
    files.put("in", encoded(two_halves(), "JPEG"))

    compressor.compress("in", "out", max_width=box[0], max_height=box[1])

    assert opened(files, "out").size == size


# What a camera that was held in one of the eight ways has stored, for a picture that is red on the left.
STORED = {
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_270],
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", sorted(STORED))
def test_a_photograph_stands_as_its_camera_was_held(
    compressor: Compressor, files: LocalStorage, orientation: int, format: str
) -> None:
    image = two_halves()
    for turn in STORED[orientation]:
        image = image.transpose(turn)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    files.put("in", encoded(image, format, exif=exif))

    compressor.compress("in", "out", format="jpeg", max_width=200, max_height=150)

    result = opened(files, "out")
    assert result.size == (200, 100)
    assert is_near(result, (30, 50), RED) and is_near(result, (170, 50), BLUE)
    assert ExifTags.Base.Orientation not in result.getexif()


SECRETS = (b"52.5200", b"Secret Camera", b"secret comment", b"secret xmp")


def photograph_with_secrets(format: str) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Secret Camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSAreaInformation] = b"52.5200, 13.4050"
    options: dict[str, object] = {"exif": exif}
    if format == "JPEG":
        options |= {"comment": b"secret comment", "xmp": b"<x>secret xmp</x>"}
    if format == "PNG":
        text = PngInfo()
        text.add_text("Comment", "secret comment")
        text.add_itxt("XML:com.adobe.xmp", "<x>secret xmp</x>")
        options |= {"pnginfo": text}
    if format in ("WEBP", "AVIF"):
        options |= {"xmp": b"<x>secret xmp</x>"}
    return encoded(two_halves(), format, **options)


@pytest.mark.parametrize("format", ["webp", "avif", "jpeg"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_place_camera_and_comments_are_dropped(
    compressor: Compressor, files: LocalStorage, source: str, format: Format
) -> None:
    data = photograph_with_secrets(source)
    assert b"52.5200" in data and b"secret xmp" in data
    files.put("in", data)

    compressor.compress("in", "out", format=format)

    written = files.read("out")
    assert not [secret for secret in SECRETS if secret in written]
    assert not opened(files, "out").getexif()
    assert not {"exif", "xmp", "comment"} & set(opened(files, "out").info)


def test_colours_are_converted_by_the_profile_which_then_goes(
    compressor: Compressor, files: LocalStorage
) -> None:
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    for key, profile in (
        ("broken", b"no profile"),
        ("other-model", swapped.tobytes()),
        ("srgb", srgb.tobytes()),
    ):
        files.put(key, encoded(two_halves(), "PNG", icc_profile=profile))
        compressor.compress(key, f"{key}.out", format="jpeg")
        image = opened(files, f"{key}.out")
        assert "icc_profile" not in image.info
        assert is_near(image, (50, 50), RED), f"a {key} profile leaves the colours alone"


def linear_profile() -> bytes:
    """A profile like sRGB but with a straight tone curve, so that mid-grey means something much brighter."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", data, 128)[0]
    for number in range(count):
        name, offset, size = struct.unpack_from(">4sII", data, 132 + 12 * number)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            data[offset : offset + size] = struct.pack(">4sIHHi", b"para", 0, 0, 0, 65536).ljust(size, b"\0")
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_profile_changes_the_numbers_so_that_the_colours_stay(
    compressor: Compressor, files: LocalStorage, mode: str
) -> None:
    image = Image.new("RGB", (8, 8), (64, 64, 64))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    files.put("in", encoded(image, "PNG", icc_profile=linear_profile()))

    compressor.compress("in", "out", format="jpeg", quality=95)

    assert is_near(opened(files, "out"), (4, 4), (137, 137, 137), tolerance=4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_kept_and_becomes_white_in_jpeg(
    compressor: Compressor, files: LocalStorage, mode: str
) -> None:
    image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((0, 0, 49, 100), fill=(0, 0, 0, 255))
    files.put("in.png", encoded(image.convert(mode), "PNG"))

    compressor.compress("in.png", "out.webp", format="webp")
    compressor.compress("in.png", "out.jpg", format="jpeg")

    transparent = opened(files, "out.webp").convert("RGBA")
    assert [transparent.getpixel((x, 50))[3] for x in (20, 80)] == [255, 0]  # type: ignore[index]
    assert is_near(opened(files, "out.jpg"), (80, 50), (255, 255, 255))
    assert is_near(opened(files, "out.jpg"), (20, 50), (0, 0, 0))


@pytest.mark.parametrize("mode", ["L", "1", "I;16", "CMYK", "YCbCr"])
def test_unusual_kinds_of_pixels_come_out_right(
    compressor: Compressor, files: LocalStorage, mode: str
) -> None:
    if mode == "I;16":
        image = Image.new("I;16", (100, 50), 40_000)
    else:
        image = Image.new("L", (100, 50), 156).convert("RGB").convert(mode)
        if mode == "1":
            image = Image.new("1", (100, 50), 1)
    files.put("in", encoded(image, "TIFF"))

    compressor.compress("in", "out", format="jpeg")

    brightness = 255 if mode == "1" else 156
    assert is_near(opened(files, "out"), (50, 25), (brightness,) * 3, tolerance=6)


def test_the_first_picture_of_an_animation_is_taken(compressor: Compressor, files: LocalStorage) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, BLUE)]
    files.put("in.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))

    compressor.compress("in.gif", "out", format="webp")

    assert is_near(opened(files, "out"), (20, 20), RED)
    assert not getattr(opened(files, "out"), "is_animated", False)


def broken(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image at all",
        b"%PDF-1.7 ...",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0" + b"\0" * 100,
        broken(encoded(two_halves(), "JPEG")),
        broken(encoded(two_halves(), "PNG")),
        broken(encoded(two_halves(), "WEBP")),
        broken(encoded(two_halves(), "AVIF")),
        broken(encoded(two_halves(), "TIFF")),
        broken(encoded(Image.effect_noise((64, 64), 50), "GIF")),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    ],
    ids=[
        "empty",
        "text",
        "pdf",
        "svg",
        "png-head",
        "jpeg-head",
        "jpeg",
        "png",
        "webp",
        "avif",
        "tiff",
        "gif",
        "eps",
    ],
)
def test_what_is_no_whole_image_is_refused_for_good(
    compressor: Compressor, files: LocalStorage, data: bytes
) -> None:
    files.put("in", data)

    with pytest.raises(InvalidImage, match=r"\w") as raised:
        compressor.compress("in", "out")

    assert isinstance(raised.value, Permanent)
    assert "0x" not in str(raised.value)
    assert not files.exists("out")


def test_a_missing_or_too_large_file_is_refused(compressor: Compressor, files: LocalStorage) -> None:
    with pytest.raises(ObjectNotFound):
        compressor.compress("missing", "out")
    files.put("in", b"x" * 2000)
    with pytest.raises(ObjectTooLarge):
        Compressor(storage=files, max_bytes=1024, max_pixels=1).compress("in", "out")


def test_one_pixel_over_the_limit_is_refused_and_the_limit_itself_is_not(files: LocalStorage) -> None:
    limited = Compressor(storage=files, max_bytes=10_000, max_pixels=10_000)
    files.put("ok", encoded(Image.new("L", (100, 100)), "PNG"))
    files.put("over", encoded(Image.new("L", (10_001, 1)), "PNG"))

    limited.compress("ok", "out")
    with pytest.raises(ImageTooLarge, match=r"10,001 x 1 pixels, over the limit of 10,000") as raised:
        limited.compress("over", "out")
    assert isinstance(raised.value, Permanent)


def png_bomb(side: int) -> bytes:
    """A valid black PNG of `side` x `side` pixels, made from one compressed row that is repeated."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (1 + side * 3)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    again = deflate.compress(row) + deflate.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">HH", len(row) * side % 65521, 1)  # Adler-32 of nothing but zeros
    body = b"\x78\xda" + again * side + deflate.flush() + checksum
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def webp_bomb() -> bytes:
    """An animation with the largest canvas that WebP knows, and one small picture in it."""
    still = encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)
    picture = still[12:]
    canvas = struct.pack("<I", 16382)[:3] * 2
    frame = b"\0" * 6 + b"\0" * 6 + b"\x64\0\0" + b"\0" + picture
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas
    body += b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
    body += b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMB = """
import json, re, sys, time
from pathlib import Path
from services.images import Compressor, ImageTooLarge
from services.storage import LocalStorage
import PIL.Image; PIL.Image.preinit()
compressor = Compressor(storage=LocalStorage(Path(sys.argv[1])), max_bytes=64_000_000, max_pixels=50_000_000)
start = time.perf_counter()
try:
    compressor.compress("bomb", "out")
except ImageTooLarge as error:
    seconds = time.perf_counter() - start
    # Not ru_maxrss, which a child inherits from the process that started it.
    peak_kb = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    print(json.dumps([str(error), seconds, peak_kb / 1024]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("bomb", ["png", "webp"])
def test_a_bomb_is_refused_quickly_and_in_little_memory(
    files: LocalStorage, tmp_path: Path, bomb: str
) -> None:
    data = png_bomb(50_000) if bomb == "png" else webp_bomb()
    files.put("bomb", data)

    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(tmp_path / "files")], capture_output=True, text=True, check=True
    )

    message, seconds, megabytes = json.loads(done.stdout)
    assert "pixels" in message
    assert seconds < 2
    assert megabytes < 256
    assert not files.exists("out")


def test_a_text_chunk_that_unfolds_is_refused(compressor: Compressor, files: LocalStorage) -> None:
    text = PngInfo()
    text.add_text("bomb", "x" * 80_000_000, zip=True)
    files.put("in", encoded(Image.new("L", (10, 10)), "PNG", pnginfo=text))

    with pytest.raises(InvalidImage, match="too large"):
        compressor.compress("in", "out")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"format": "bmp"}, "no format 'bmp'; it is one of webp, avif, jpeg"),
        ({"max_width": 0}, "pixels from 1"),
        ({"max_height": -5}, "pixels from 1"),
        ({"quality": 0}, "from 1 to 100"),
        ({"quality": 101}, "from 1 to 100"),
        ({"destination": "in"}, "its own destination"),
    ],
)
def test_an_impossible_request_is_refused(
    compressor: Compressor, files: LocalStorage, request_: dict[str, object], words: str
) -> None:
    files.put("in", encoded(two_halves(), "PNG"))

    with pytest.raises(InvalidRequest, match=words):
        compressor.compress("in", **{"destination": "out", **request_})  # type: ignore[arg-type]


def test_a_destination_outside_the_storage_is_refused(compressor: Compressor, files: LocalStorage) -> None:
    files.put("in", encoded(two_halves(), "PNG"))

    with pytest.raises(InvalidKey):
        compressor.compress("in", "../out")


def test_a_size_that_the_format_cant_hold_is_refused(compressor: Compressor, files: LocalStorage) -> None:
    files.put("in", encoded(Image.new("L", (20_000, 2)), "PNG"))

    with pytest.raises(InvalidImage, match="can't be made into webp"):
        compressor.compress("in", "out", format="webp")


def test_a_second_run_gives_the_same_file(compressor: Compressor, files: LocalStorage) -> None:
    files.put("in", encoded(two_halves(), "JPEG"))
    compressor.compress("in", "out", max_width=50)
    first = files.read("out")

    compressor.compress("in", "out", max_width=50)

    assert files.read("out") == first


def test_a_missing_library_names_the_extra(
    compressor: Compressor, files: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)

    with pytest.raises(MissingExtra, match=r"callboard\[images\]"):
        compressor.compress("in", "out")


def test_the_function_uses_the_settings_and_the_default_storage(
    files: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_IMAGE_MAX_PIXELS", "100")
    files.put("in", encoded(two_halves(), "PNG"))
    with storage.default.replaced_by(files), pytest.raises(ImageTooLarge, match="over the limit of 100"):
        images.compress_image("in", "out")

    monkeypatch.delenv("CALLBOARD_IMAGE_MAX_PIXELS")
    with storage.default.replaced_by(files):
        assert images.compress_image("in", "out", max_width=10).width == 10
