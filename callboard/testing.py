"""A pytest plugin for people who write actors."""
