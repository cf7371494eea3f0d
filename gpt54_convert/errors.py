"""Every error a user can meet: one sentence that says what, where, and what to do."""

from __future__ import annotations


class ConvertError(Exception):
    """Something that the user can understand and mend; the CLI prints it and exits with 1."""

    exit_code = 1


class InputError(ConvertError):
    """The input cannot be used: damaged, hostile, incomplete or of an unknown kind."""


class UnsupportedError(ConvertError):
    """The input is sound, but this version cannot do what was asked of it."""


class OutputError(ConvertError):
    """The output cannot be written: it exists already, the disk is full, no permission."""


class UsageError(ConvertError):
    """Options or recipe keys that make no sense together; the CLI exits with 2."""

    exit_code = 2


class InternalError(ConvertError):
    """Two parts of this program disagree; a bug of ours, never of the user's."""


class MeasureError(ConvertError):
    """What was asked for cannot be measured (a runtime is missing, too little text); the CLI exits with 4.

    A measurement that could not be made is never a pass.
    """

    exit_code = 4


class GateError(ConvertError):
    """A stage of a recipe did not keep what its gate demands; the CLI exits with 3."""

    exit_code = 3
