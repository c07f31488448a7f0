"""Loading an application, and what is said when that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]

_BROKER = """
from callboard import ActorDecorator
from callboard.brokers.base import Broker
from callboard.brokers.stub import StubDriver

broker = Broker(StubDriver())
actor = ActorDecorator(broker)
"""

_LOAD = """
import sys
from callboard.app import load_app
from callboard.errors import CallboardError
try:
    broker = load_app((sys.argv[1:] or ["broker"])[0], sys.argv[2:])
except CallboardError as error:
    print(type(error).__name__ + ":", error)
else:
    print("loaded", *sorted(broker.actors))
"""


class Folder:
    """An application's folder, and what loading it from there says. In a process of its own, as modules stay."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("broker.py", _BROKER)

    def write(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def write_actor(self, name: str, actor: str) -> None:
        self.write(name, f"from broker import actor\n@actor(category='jobs')\ndef {actor}() -> None: ...\n")

    def load(self, *arguments: str) -> str:
        loaded = subprocess.run(
            [sys.executable, "-c", _LOAD, *arguments],
            cwd=self.path,
            env={"PYTHONPATH": str(_ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert loaded.stderr == ""
        return loaded.stdout.strip()


@pytest.fixture
def app(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_every_module_of_actors_and_periodic_is_loaded(app: Folder) -> None:
    app.write("actors/__init__.py", "")
    app.write("periodic/__init__.py", "")
    app.write("actors/deep/__init__.py", "")
    app.write_actor("actors/email.py", "send")
    app.write_actor("actors/deep/inner.py", "dig")
    app.write_actor("periodic/nightly.py", "clean")
    assert app.load() == "loaded clean dig send"


def test_an_application_may_have_neither_and_name_its_modules(app: Folder) -> None:
    (app.path / "broker.py").rename(app.path / "wiring.py")
    app.write("elsewhere.py", "from wiring import actor\n@actor(category='jobs')\ndef far() -> None: ...\n")
    assert app.load("wiring") == "loaded"
    assert app.load("wiring", "elsewhere") == "loaded far"


def test_packages_of_the_same_name_from_elsewhere_are_not_the_application_s(app: Folder) -> None:
    assert app.load() == "loaded", "Callboard's own checkout on the path has actors, too"
    app.write_actor("actors/email.py", "send")
    answer = app.load()
    assert f"not from {app.path / 'actors'}" in answer
    assert "__init__.py" in answer


def test_a_missing_module_says_where_it_was_looked_for_and_what_to_do(app: Folder) -> None:
    (app.path / "broker.py").unlink()
    # The checkout that is on the path has a broker.py of its own; another name is nowhere.
    assert app.load("wiring") == (
        f"AppError: there is no module 'wiring' in {app.path}; run from the folder that has wiring.py, or pass --module"
    )
    assert "there is no module 'my.wiring'" in app.load("my.wiring")


def test_a_missing_extra_module_is_told(app: Folder) -> None:
    assert "there is no module 'elsewhere'" in app.load("broker", "elsewhere")


def test_a_module_without_a_broker_says_what_it_has(app: Folder) -> None:
    app.write("broker.py", "")
    assert "must export 'broker', a callboard.brokers.base.Broker, and there it has nothing" in app.load()
    app.write("broker.py", "import dramatiq\nbroker = dramatiq.Broker()\n")
    assert "it has a dramatiq.broker.Broker" in app.load()


def test_an_import_error_shows_the_application_s_own_lines_only(app: Folder) -> None:
    app.write("actors/__init__.py", "")
    app.write("helper.py", "def compute():\n    return 1 / 0\n")
    app.write("actors/email.py", "import json\nimport helper\nhelper.compute()\n")
    answer = app.load()
    assert answer.startswith("AppError: 'actors.email' can't be imported:\n")
    assert f'File "{app.path / "actors/email.py"}", line 3' in answer
    assert f'File "{app.path / "helper.py"}", line 2, in compute' in answer
    assert answer.endswith("ZeroDivisionError: division by zero")
    assert answer.count("File ") == 2


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import jsn", "ModuleNotFoundError: No module named 'jsn'"),
        ("def broken(:\n    pass", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("from broker import actor\n@actor(tpyo=1)\ndef send() -> None: ...", "unknown options: tpyo"),
    ],
)
def test_whatever_goes_wrong_in_a_module_names_the_module_and_the_line(
    code: str, told: str, app: Folder
) -> None:
    app.write("actors/__init__.py", "")
    app.write("actors/email.py", code)
    answer = app.load()
    assert "'actors.email' can't be imported" in answer
    assert "actors/email.py" in answer
    assert told in answer


def test_a_wrong_setting_is_one_sentence_without_lines_of_code(app: Folder) -> None:
    app.write("broker.py", "from callboard.brokers import open_driver\nopen_driver('carrier-pigeon:')\n")
    answer = app.load()
    assert answer.startswith("SettingsError: CALLBOARD_BROKER_URL")
    assert "File" not in answer
