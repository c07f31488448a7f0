"""Photographs made smaller: resized, turned upright, without a trace of where they were taken.

    images.compress_image("uploads/1.jpg", "small/1.webp", format="webp", max_width=1600)

An image is judged by its head before any pixel is decoded: a file of a few kilobytes may unfold to gigabytes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field

from callboard.errors import CallboardError, MissingExtra, Permanent
from callboard.settings import CallboardSettings
from services import storage
from services.default import Default

if TYPE_CHECKING:
    from PIL.Image import Image

Format = Literal["webp", "avif", "jpeg"]

_READABLE = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP")
_SIDEWAYS = frozenset({5, 6, 7, 8})  # the EXIF orientations that swap width and height
_ORIENTATION = 0x0112
_UNLIMITED = 1 << 30
_OPTIONS: dict[Format, dict[str, object]] = {
    "webp": {"method": 4},
    "avif": {"speed": 6},
    "jpeg": {"optimize": True, "progressive": True},
}


class InvalidImage(Permanent):
    """The source is no image, or a broken one."""


class ImageTooLarge(Permanent):
    """The image has more pixels than may be decoded. None were."""


class InvalidRequest(Permanent):
    """The image can't be made as asked for: the format, the size, the quality, or the destination."""


class ImageSettings(CallboardSettings):
    """How large an image may be."""

    image_max_bytes: int = Field(64_000_000, ge=1024, description="The largest image file to read, in bytes.")
    image_max_pixels: int = Field(
        50_000_000, ge=1, description="The largest image to decode, in pixels: width times height."
    )


@dataclass(frozen=True, slots=True)
class ImageReport:
    """A finished image: width and height in pixels, sizes in bytes, and its storage key."""

    width: int
    height: int
    bytes_before: int
    bytes_after: int
    key: str


class Compressor:
    """Reads images from a storage and writes smaller ones back to it."""

    def __init__(self, *, storage: storage.Storage, max_bytes: int, max_pixels: int) -> None:
        self._storage = storage
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels

    def compress(
        self,
        source: str,
        destination: str,
        *,
        format: Format = "webp",
        max_width: int | None = None,
        max_height: int | None = None,
        quality: int = 80,
    ) -> ImageReport:
        """Write the image at the key `source` to the key `destination`.

        It keeps its proportions, fits into `max_width` by `max_height` pixels, and is never enlarged. `quality`
        goes from 1 to 100. It is turned as its EXIF orientation says, its colours become sRGB, and all other
        data about it (place, camera, comments) is dropped. Of an animation, the first picture is taken. JPEG
        has no transparency: it gets a white ground.

        Raises:
            InvalidRequest: a size or the quality is out of range, or the destination is the source.
            InvalidImage: the source is no image of a known kind, or a broken one.
            ImageTooLarge: it has more pixels than the limit.
            ObjectNotFound, ObjectTooLarge: there is no such source, or it has more bytes than the limit.
            MissingExtra: pillow isn't installed.
        """
        _check(source, destination, format, max_width, max_height, quality)
        _require_pillow()
        data = self._storage.read(source, limit=self._max_bytes)
        try:
            image = self._decode(source, data, max_width or _UNLIMITED, max_height or _UNLIMITED)
            result = _encode(image, format, quality)
        except (CallboardError, MemoryError):
            raise
        except Exception as error:
            # Pillow's decoders raise nearly anything on broken bytes, from SyntaxError to struct.error.
            raise InvalidImage(f"'{source}' can't be made into {format}: {error}") from error
        self._storage.put(destination, result)
        return ImageReport(image.width, image.height, len(data), len(result), destination)

    def _decode(self, source: str, data: bytes, max_width: int, max_height: int) -> Image:
        from PIL.Image import Resampling

        image = self._open(source, data)
        box = _turned((max_width, max_height), image.getexif().get(_ORIENTATION))
        image.draft(None, (2 * box[0], 2 * box[1]))  # JPEG can be decoded to a half, a quarter, an eighth
        image.load()
        orientation = image.getexif().get(_ORIENTATION)  # again: loading a TIFF has turned it already
        small = _with_plain_pixels(image)
        # First smaller, then the rest: it is the large image that costs time and memory.
        small.thumbnail(_turned((max_width, max_height), orientation), Resampling.LANCZOS, reducing_gap=3.0)
        return _in_srgb(_upright(small, orientation), image.info.get("icc_profile"))

    def _open(self, source: str, data: bytes) -> Image:
        """The image's head, which says how large it is. No pixel is decoded."""
        from PIL import Image, UnidentifiedImageError

        try:
            image = Image.open(io.BytesIO(data), formats=_READABLE)
        except UnidentifiedImageError:
            raise InvalidImage(
                f"'{source}' is none of {', '.join(_READABLE)}, or its head is broken"
            ) from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageTooLarge(f"'{source}' has too many pixels: {error}") from error
        if image.width * image.height > self._max_pixels:
            size = f"{image.width:,} x {image.height:,}"
            raise ImageTooLarge(f"'{source}' has {size} pixels, over the limit of {self._max_pixels:,}")
        return image


def _check(
    source: str, destination: str, format: str, max_width: int | None, max_height: int | None, quality: int
) -> None:
    if format not in get_args(Format):
        raise InvalidRequest(f"there is no format '{format}'; it is one of {', '.join(get_args(Format))}")
    if any(limit is not None and limit < 1 for limit in (max_width, max_height)):
        raise InvalidRequest(f"max_width and max_height are pixels from 1, not {max_width} and {max_height}")
    if not 1 <= quality <= 100:
        raise InvalidRequest(f"quality goes from 1 to 100, not {quality}")
    if source == destination:
        raise InvalidRequest(f"'{source}' can't be its own destination: a second run would compress it again")
    storage.check_key(destination)


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtra("images", needed_for="compressing images") from error


def _turned(box: tuple[int, int], orientation: int | None) -> tuple[int, int]:
    return (box[1], box[0]) if orientation in _SIDEWAYS else box


def _upright(image: Image, orientation: int | None) -> Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _with_plain_pixels(image: Image) -> Image:
    """In a mode that can be resized and colour-managed: L, RGB, RGBA or CMYK."""
    if image.mode in ("L", "RGB", "RGBA", "CMYK") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits of grey; converting cuts them off at 255
        return image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "F") else "RGB")


def _in_srgb(image: Image, profile: bytes | None) -> Image:
    """The pixels alone, in the colours of the web."""
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    if profile:
        image = _converted(image, profile, mode)
    image = image.convert(mode)
    image.info = {}
    return image


def _converted(image: Image, profile: bytes, mode: str) -> Image:
    from PIL import ImageCms

    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a broken profile, or one of another colour model: better as it is than not at all
    return converted or image


def _encode(image: Image, format: Format, quality: int) -> bytes:
    from PIL import Image as Images

    if format == "jpeg" and image.mode == "RGBA":
        ground = Images.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        image = ground
    out = io.BytesIO()
    image.save(out, format=format, quality=quality, **_OPTIONS[format])
    return out.getvalue()


def _build() -> Compressor:
    settings = ImageSettings.load()
    return Compressor(
        storage=storage.default(),
        max_bytes=settings.image_max_bytes,
        max_pixels=settings.image_max_pixels,
    )


default: Default[Compressor] = Default(_build, needs=[storage.default])


def compress_image(
    source: str,
    destination: str,
    *,
    format: Format = "webp",
    max_width: int | None = None,
    max_height: int | None = None,
    quality: int = 80,
) -> ImageReport:
    """Write the image at the key `source`, made smaller, to `destination`; see `Compressor.compress`."""
    return default().compress(
        source, destination, format=format, max_width=max_width, max_height=max_height, quality=quality
    )
