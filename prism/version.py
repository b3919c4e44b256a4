"""The version of this Prism."""

__version__ = "0.2.0"
