"""A store in one SQLite file: what `CALLBOARD_STORE_URL=file:FOLDER` and `memory:` give.

`store.py` is the store, `records.py` its write path, `search.py` its searches, `schema.py` the tables and
how they came to be, `database.py` the file: connections, turns at writing, what can go wrong with it.
"""

from callboard.store.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
