"""The version of edgefold, where its package is not installed: on a device that has one file of it."""

VERSION = "0.1.0"  # as in pyproject.toml
