"""Changes of an application's files are noticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from callboard.worker.reload import Watcher


@pytest.fixture
def app(tmp_path: Path) -> Path:
    for name in ("broker.py", "actors/email.py", "content/welcome.html", "actors/__pycache__/email.pyc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one")
    return tmp_path


def _told(watcher: Watcher, looks: int = 3) -> list[Path]:
    return [path for _ in range(looks) for path in watcher.changed()]


def test_nothing_is_told_while_nothing_changes(app: Path) -> None:
    assert _told(Watcher([app])) == []


def test_changed_new_and_removed_files_are_told_once(app: Path) -> None:
    watcher = Watcher([app])
    (app / "broker.py").write_text("other")
    (app / "actors/new.py").write_text("new")
    (app / "content/welcome.html").unlink()
    assert _told(watcher) == [app / "actors/new.py", app / "broker.py", app / "content/welcome.html"]
    assert _told(watcher) == []


def test_a_save_of_many_files_is_one_change(app: Path) -> None:
    watcher = Watcher([app])
    (app / "broker.py").write_text("first")
    assert watcher.changed() == [], "more may come"
    (app / "actors/email.py").write_text("second")
    assert watcher.changed() == []
    assert watcher.changed() == [app / "actors/email.py", app / "broker.py"]


def test_a_change_of_the_same_size_is_noticed_by_its_time(app: Path) -> None:
    watcher = Watcher([app])
    (app / "broker.py").write_text("two")
    os.utime(app / "broker.py", ns=(1, 1))
    assert _told(watcher) == [app / "broker.py"]


@pytest.mark.parametrize(
    "name",
    ["var/queue.py", ".git/config.py", "actors/__pycache__/email.py", "environment/lib.py", "report.html"],
)
def test_what_is_none_of_the_application_is_not_watched(app: Path, name: str) -> None:
    (app / "environment").mkdir()
    (app / "environment/pyvenv.cfg").write_text("")
    watcher = Watcher([app])
    path = app / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("changed")
    assert _told(watcher) == []
