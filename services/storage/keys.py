"""Which keys are safe: relative, plain, and the same place whoever reads them."""

from __future__ import annotations

from urllib.parse import unquote

from callboard.errors import Permanent

HIDDEN = ".callboard"
"""The folder in which unfinished files wait; no key may lead into it."""

_MAX_KEY_BYTES = 1024
_MAX_NAME_BYTES = 255


class InvalidKey(Permanent):
    """A storage key that could lead out of the storage, or mean different places to different readers."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"the storage key {key[:200]!r} is refused: {reason}")
        self.key = key


def check_key(key: str) -> tuple[str, ...]:
    """The names along the key: `reports/2026/may.csv` gives three.

    Raises:
        InvalidKey: it is empty, absolute, too long, has an empty, `.` or `..` part, a backslash, a control
            character, or percent-encoding, or leads into the folder of unfinished files.
    """
    if reason := _fault(key):
        raise InvalidKey(key, reason)
    return tuple(key.split("/"))


def check_prefix(prefix: str) -> tuple[str, ...]:
    """The names along a folder, with or without a final slash; the empty prefix is the whole storage.

    Raises:
        InvalidKey: as for keys.
    """
    return check_key(prefix.removesuffix("/")) if prefix else ()


def is_key(key: str) -> bool:
    return _fault(key) is None


def _fault(key: str) -> str | None:
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    names = key.split("/")
    if not key:
        return "it is empty"
    if key.startswith("/"):
        return "it is absolute; keys are relative to the storage"
    if not key.isprintable():
        return "it holds a control character or one that doesn't print"
    if "\\" in key:
        return "it holds a backslash; folders are divided by '/'"
    if unquote(key) != key:
        return "it is percent-encoded; keys are plain text"
    if "" in names or "." in names or ".." in names:
        return "it has an empty, '.' or '..' part"
    if names[0] == HIDDEN:
        return f"'{HIDDEN}' is where unfinished files wait"
    if len(encoded) > _MAX_KEY_BYTES or any(len(name.encode()) > _MAX_NAME_BYTES for name in names):
        return f"it is longer than {_MAX_KEY_BYTES} bytes, or a part of it than {_MAX_NAME_BYTES}"
    return None
