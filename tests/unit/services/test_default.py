"""Ready-made instances: built late and once, and easy to replace."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.default import Default


class Thing:
    def __init__(self, inner: Thing | None = None) -> None:
        self.inner = inner


def test_an_instance_is_built_at_the_first_call_and_only_once() -> None:
    built: list[Thing] = []

    def build() -> Thing:
        built.append(Thing())
        return built[-1]

    default = Default(build)
    assert built == []

    assert default() is default() is built[0]
    assert len(built) == 1


def test_a_failed_build_is_tried_again() -> None:
    attempts = iter([ValueError("not yet"), None])

    def build() -> Thing:
        if error := next(attempts):
            raise error
        return Thing()

    default = Default(build)
    with pytest.raises(ValueError, match="not yet"):
        default()
    assert isinstance(default(), Thing)


def test_a_replacement_holds_inside_its_block_only() -> None:
    default = Default(Thing)
    before, other = default(), Thing()

    with pytest.raises(RuntimeError), default.replaced_by(other) as given:
        assert default() is other is given
        raise RuntimeError

    assert default() is before


def test_whoever_needs_a_replaced_instance_is_built_anew_with_it() -> None:
    inner = Default(Thing)
    outer = Default(lambda: Thing(inner()), needs=[inner])
    outermost = Default(lambda: Thing(outer()), needs=[outer])
    first = outermost()
    other = Thing()

    with inner.replaced_by(other):
        assert outer().inner is other
        assert outermost().inner is outer()

    assert outer().inner is inner() is not other
    assert outermost() is not first


def test_after_forgetting_it_is_built_anew() -> None:
    default = Default(Thing)
    first = default()

    default.forget()

    assert default() is not first


def test_importing_the_services_loads_no_optional_library_and_opens_nothing() -> None:
    script = (
        "import sys, pathlib, os\n"
        "os.environ.clear(); os.environ['CALLBOARD_STORAGE_URL'] = 'nonsense'\n"
        "sys.addaudithook(lambda event, args: event.startswith(('socket.', 'sqlite3.connect')) and sys.exit(event))\n"
        "from services import cleaner, exporter, images, mailer, storage\n"
        "print([name for name in ('PIL', 'obstore', 'jinja2', 'mjml') if name in sys.modules])\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.stdout.strip(), done.stderr) == ("[]", "")
