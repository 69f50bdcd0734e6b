"""Errors that users read: one line each, and the exit code that goes with it."""


class MsdeError(Exception):
    """Something the user can mend; the message says what was found, expected and to do."""

    exit_code = 2


class DataDamaged(MsdeError):
    """A shard or manifest that is not what was written."""

    exit_code = 6


class NoCheckpoint(MsdeError):
    """No checkpoint to resume from although one is required."""

    exit_code = 3
