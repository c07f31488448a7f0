"""A mail is a folder: `content/templates/NAME/` with `subject.txt`, `body.mjml` or `body.html`, `body.txt`.

Templates are Jinja2, in its sandbox, so that nobody who may edit a template can reach the process. What goes
into HTML and MJML is escaped, and nothing that stands in data is ever read as a template. Without `body.txt`
the text part is derived from the HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from callboard.errors import MissingExtra, Permanent
from services.mailer.plain_text import to_text

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment


class UnknownTemplate(Permanent):
    """No mail template has this name; the message suggests the nearest."""


class TemplateFailed(Permanent):
    """A template can't be rendered: the message says which file, and what it misses or where it is wrong."""


@dataclass(frozen=True, slots=True)
class RenderedMail:
    """The parts of a mail. `subject` is None when the template has none."""

    subject: str | None
    text: str
    html: str | None


class Templates:
    """The mail templates in the folder `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def render(self, name: str, context: Mapping[str, object]) -> RenderedMail:
        """The mail `name` with the values of `context` in it.

        Raises:
            UnknownTemplate: there is no such folder.
            TemplateFailed: a value is missing from `context`, or a file is wrong.
            MissingExtra: jinja2 or, for MJML, mjml-python isn't installed.
        """
        folder = self._folder(name)
        files = {path.name for path in folder.iterdir()}
        subject = self._fill(f"{name}/subject.txt", context) if "subject.txt" in files else None
        html = None
        if "body.mjml" in files:
            html = _from_mjml(f"{name}/body.mjml", self._fill(f"{name}/body.mjml", context))
        elif "body.html" in files:
            html = self._fill(f"{name}/body.html", context)
        if "body.txt" in files:
            return RenderedMail(subject, self._fill(f"{name}/body.txt", context), html)
        if html is None:
            raise TemplateFailed(f"the mail template '{name}' has neither body.mjml, body.html nor body.txt")
        return RenderedMail(subject, to_text(html), html)

    def _folder(self, name: str) -> Path:
        known = (
            sorted(path.name for path in self._root.iterdir() if path.is_dir()) if self._root.is_dir() else []
        )
        if name in known:
            return self._root / name
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known) or 'none'}"
        raise UnknownTemplate(f"there is no mail template '{name}' in {self._root}; {hint}")

    def _fill(self, file: str, context: Mapping[str, object]) -> str:
        environment = self._environment
        from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

        try:
            return environment.get_template(file).render(context)
        except UndefinedError as error:
            raise TemplateFailed(f"the mail template '{file}' lacks a value: {error.message}") from error
        except TemplateError as error:
            line = f", line {error.lineno}," if isinstance(error, TemplateSyntaxError) else ""
            raise TemplateFailed(f"the mail template '{file}'{line} is wrong: {error.message}") from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise TemplateFailed(f"the mail template '{file}' can't use the values: {error}") from error

    @cached_property
    def _environment(self) -> SandboxedEnvironment:
        try:
            from jinja2 import FileSystemLoader, StrictUndefined
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise MissingExtra("mail", needed_for="a mail template") from error

        class Missing(StrictUndefined):
            def __format__(self, spec: str) -> str:  # which StrictUndefined forgets
                return str(self)

        return ImmutableSandboxedEnvironment(
            loader=FileSystemLoader(self._root),
            autoescape=lambda file: file is None or not file.endswith(".txt"),
            undefined=Missing,
            trim_blocks=True,
            lstrip_blocks=True,
        )


def _from_mjml(file: str, source: str) -> str:
    try:
        from mjml import mjml2html
    except ImportError as error:
        raise MissingExtra("mail", needed_for="an MJML template") from error
    try:
        return mjml2html(source, disable_comments=True, fonts={})
    except ValueError as error:
        raise TemplateFailed(f"the mail template '{file}' is no valid MJML: {error}") from error
