"""Addresses and subjects that are safe to put into a header."""

from __future__ import annotations

import re
from email.errors import MessageError
from email.headerregistry import Address

from callboard.errors import Permanent

_WITH_NAME = re.compile(r"^(?P<name>[^<>]*?)\s*<(?P<address>[^<>\s]+)>$")
_PLAIN = re.compile(
    r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253}[A-Za-z0-9])?$"
)


class InvalidAddress(Permanent):
    """An address that no server would take, or that tries to smuggle in a header."""


class InvalidSubject(Permanent):
    """A subject with a line break or another control character in it."""


def parse_address(text: str) -> Address:
    """`ada@example.org` or `Ada Lovelace <ada@example.org>`; domains beyond ASCII become punycode.

    Raises:
        InvalidAddress: it is neither, holds a line break, or has letters beyond ASCII before the @.
    """
    if _has_control(text):
        raise InvalidAddress(f"the address {text!r} is refused: it holds a line break or control character")
    named = _WITH_NAME.match(text.strip())
    name = named["name"].strip('" ') if named else ""
    local, _, domain = (named["address"] if named else text.strip()).rpartition("@")
    try:
        plain = f"{local}@{domain.encode('idna').decode() if not domain.isascii() else domain}"
    except UnicodeError as error:
        raise InvalidAddress(f"the address {text!r} has an impossible domain") from error
    if not _PLAIN.match(plain):
        raise InvalidAddress(f"{text!r} is no e-mail address; write ada@example.org or Ada <ada@example.org>")
    try:
        return Address(name, addr_spec=plain)
    except (MessageError, ValueError, IndexError) as error:
        raise InvalidAddress(f"{text!r} is no e-mail address: {error}") from error


def check_subject(text: str) -> str:
    """The subject without outer white space.

    Raises:
        InvalidSubject: it holds a line break or control character, or nothing.
    """
    text = text.strip(" ")
    if not text:
        raise InvalidSubject("the subject is empty")
    if _has_control(text):
        raise InvalidSubject(f"the subject {text!r} is refused: it holds a line break or control character")
    return text


def _has_control(text: str) -> bool:
    return any(not char.isprintable() and char not in "\u00a0\u200d" for char in text)
