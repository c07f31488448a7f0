"""Loading an application: its `broker.py`, and every module of its `actors` and `periodic` packages.

Only commands load an application; everything else is passed its broker.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import callboard
from callboard.brokers.base import Broker
from callboard.errors import AppError, CallboardError, DeclarationError, ScheduleError

#: The packages whose modules declare jobs.
PACKAGES = ("actors", "periodic")


def load_app(module: str = "broker", extra_modules: Sequence[str] = ()) -> Broker:
    """Import an application from the current folder, and return its broker.

    The modules of the packages `actors` and `periodic` are imported too, where the current folder has them.

    Args:
        module: The module that has `broker`.
        extra_modules: More modules to import, which declare actors elsewhere.

    Raises:
        AppError: If a module isn't there, or can't be imported; the message says why, with the lines of the
            application that led there.
        CallboardError: What else `broker.py` raised of Callboard's own: a wrong setting, a missing extra.
    """
    folder = Path.cwd()
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    if not _exists(module):
        raise AppError(
            f"there is no module '{module}' in {folder}; "
            f"run from the folder that has {module.replace('.', '/')}.py, or pass --module"
        )
    broker = getattr(_import(module), "broker", None)
    if not isinstance(broker, Broker):
        found = "nothing" if broker is None else f"a {type(broker).__module__}.{type(broker).__qualname__}"
        raise AppError(
            f"'{module}' must export 'broker', a callboard.brokers.base.Broker, and there it has {found}"
        )
    for name in extra_modules:
        if not _exists(name):
            raise AppError(f"there is no module '{name}' in {folder}, nor anywhere else on Python's path")
    for name in (*_declaring_modules(folder), *extra_modules):
        _import(name)
    return broker


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent of it
        return False
    except Exception:  # noqa: BLE001  its parent package can't be imported, and importing it will tell why
        return True


def _declaring_modules(folder: Path) -> Iterator[str]:
    """The modules of the application's packages: of its own only, as others may have such names too."""
    for package in PACKAGES:
        spec = importlib.machinery.PathFinder.find_spec(package, [str(folder)])
        if spec is None:
            continue
        places = list(spec.submodule_search_locations or ())
        winner = importlib.util.find_spec(package)
        found = list(winner.submodule_search_locations or ()) if winner is not None else []
        if places != found:  # a package without __init__.py loses against one that has it
            raise AppError(
                f"'{package}' is imported from {', '.join(found) or 'elsewhere'} and not from {', '.join(places)}; "
                f"put an empty __init__.py there, and start Python without another '{package}' on its path"
            )
        yield package
        yield from _below(package, places)


def _below(package: str, paths: Sequence[str]) -> Iterator[str]:
    for found in sorted(pkgutil.iter_modules(paths), key=lambda found: found.name):
        name = f"{package}.{found.name}"
        yield name
        if found.ispkg:
            yield from _below(name, [str(Path(path, found.name)) for path in paths])


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, CallboardError) and not isinstance(error, DeclarationError | ScheduleError):
            raise  # a sentence about the settings or the machine, not about a line of code
        raise AppError(f"'{name}' can't be imported:\n{_story(error)}") from error


def _story(error: BaseException) -> str:
    """A traceback that shows the application's own lines only."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    lines = traceback.format_list(frames)
    return "".join([*lines, *traceback.format_exception_only(error)]).rstrip()


def _is_users(filename: str) -> bool:
    return not filename.startswith("<") and not any(
        Path(filename).is_relative_to(place) for place in _not_users()
    )


def _not_users() -> Iterator[Path]:
    yield Path(callboard.__file__).parent
    paths = sysconfig.get_paths()
    yield from {Path(paths[key]) for key in ("stdlib", "platstdlib", "purelib", "platlib")}


__all__ = ["load_app"]
