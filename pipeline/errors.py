"""The one exception a user is meant to read."""


class UserError(Exception):
    """Bad input or a failed precondition: one sentence that names the thing and the remedy.

    The command line prints it without a traceback (unless `--debug`) and exits 2.
    """
