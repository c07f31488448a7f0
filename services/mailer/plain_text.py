"""The text part of a mail whose template has only HTML: for text-only readers, previews and spam filters."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_SKIPPED = frozenset({"head", "style", "script", "title", "template"})
_BLOCKS = frozenset(
    {
        "p",
        "div",
        "tr",
        "table",
        "ul",
        "ol",
        "li",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "blockquote",
        "pre",
    }
)
_SPACED = frozenset({"p", "table", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "blockquote", "pre"})


def to_text(html: str) -> str:
    """The words of `html`, with its paragraphs, list items and table rows on lines of their own.

    A link is followed by its address in brackets, unless that is what it says already. What is hidden with
    `display:none` is left out.
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    lines = [re.sub(r"[ \t\xa0\u200c]+", " ", line).strip() for line in "".join(reader.parts).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent: list[str] = []  # open tags, from the first one that hides its content
        self._links: list[tuple[str, int]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        hidden = tag in _SKIPPED or "display:none" in values.get("style", "").replace(" ", "").lower()
        if (self._silent or hidden) and tag not in _VOID:
            self._silent.append(tag)
        if self._silent:
            return
        if tag == "br":
            self.parts.append("\n")
        if tag in _BLOCKS:
            self._break(tag)
        if tag == "li":
            self.parts.append("- ")
        if tag == "img" and (alt := values.get("alt")):
            self.parts.append(alt)
        if tag == "a":
            self._links.append((values.get("href", ""), len(self.parts)))

    def handle_endtag(self, tag: str) -> None:
        if self._silent:
            if tag in self._silent:
                del self._silent[len(self._silent) - 1 - self._silent[::-1].index(tag) :]
            return
        if tag == "a" and self._links:
            target, start = self._links.pop()
            text = "".join(self.parts[start:]).strip()
            if text and target not in ("", text, f"mailto:{text}") and not target.startswith("#"):
                self.parts.append(f" ({target})")
        if tag in ("td", "th"):
            self.parts.append("  ")
        if tag in _BLOCKS:
            self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(re.sub(r"\s+", " ", data))

    def _break(self, tag: str) -> None:
        if tag in _SPACED:
            self.parts.append("\n\n")
        elif not next((part for part in reversed(self.parts) if part.strip(" ")), "\n").endswith("\n"):
            self.parts.append("\n")


_VOID = frozenset(
    {"br", "hr", "img", "meta", "link", "input", "col", "base", "area", "wbr", "source", "embed"}
)
