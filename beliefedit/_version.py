"""The version, where setuptools and users read it."""

__version__ = "0.2.0"
