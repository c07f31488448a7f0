"""The names of the package and of its pytest plugin, which come when they are first used."""

from __future__ import annotations

import subprocess
import sys

import callboard
import callboard.cron as the_module_was_imported  # noqa: F401  the point of a test here
import callboard.testing


def test_every_name_is_there() -> None:
    assert set(callboard.__all__) == set(callboard._HOME_OF)
    assert all(getattr(callboard, name) is not None for name in callboard.__all__)
    assert set(callboard.__all__) <= set(dir(callboard))


def test_every_name_of_the_plugin_is_there() -> None:
    plugin = callboard.testing
    assert set(plugin.__all__) == set(plugin._HOME_OF)
    assert all(getattr(plugin, name).__name__ == name for name in plugin.__all__)


def test_cron_is_the_function_whoever_imported_its_module() -> None:
    assert str(callboard.cron("0 3 * * *")) == "0 3 * * *"
    script = (
        "import callboard.cron; from callboard import cron; import callboard; cron('0 3 * * *').explain()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(callboard, "no_such_name")
    assert not hasattr(callboard.testing, "no_such_name")
