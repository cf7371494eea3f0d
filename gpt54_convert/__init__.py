"""Turn a float transformer checkpoint into deployable artifacts, and prove that they still behave."""

__version__ = "0.1.0"
