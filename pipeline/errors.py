"""The one exception a user is meant to read."""


class UserError(Exception):
    """Bad input or a failed precondition: one sentence that names the thing and the remedy.

    The command line prints it without a traceback (unless `--debug`) and exits with `code`.
    """

    code = 2


class LockedError(UserError):
    """Another run is writing where this one wants to."""


class StoppedError(UserError):
    """Ctrl-C or SIGTERM where there is more to say than that the same command goes on."""

    code = 130
