"""Pictures made smaller."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from broker import actor
from services import images


@actor(retries=2, time_limit=timedelta(minutes=5))
def compress_image(
    source: str,
    destination: str,
    format: Literal["webp", "avif", "jpeg"] = "webp",
    max_width: int = 1920,
    max_height: int = 1920,
    quality: int = 80,
) -> None:
    """Write a smaller copy of a picture to another storage key.

    Safe to run twice: the source stays, and the copy appears whole.
    """
    images.compress_image(
        source, destination, format=format, max_width=max_width, max_height=max_height, quality=quality
    )
