"""The version of dualign, which setuptools, records and cards read."""

__version__ = "0.1.0"
