"""What the jobs do. A module is a category, and its name is the category's name.

Importing the package imports all its modules, so that `dramatiq broker actors periodic` knows every job.
"""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
