"""The exceptions whose message a user reads."""


class UserError(Exception):
    """Bad input or a failed precondition: one sentence that names the thing and the remedy.

    The command line prints it without a traceback (unless `--debug`) and exits with `code`.
    """

    code = 2


class LackingError(UserError):
    """One stage lacks what it needs here (a package, a key, a connection); others may run."""


class LockedError(UserError):
    """Another run is writing to the same folder."""


class StoppedError(UserError):
    """Ctrl-C or SIGTERM, with more to say than "the same command goes on"."""

    code = 130
