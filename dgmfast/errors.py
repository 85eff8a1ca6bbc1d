"""The one exception for input a user can mend: a message of one sentence, which the command line prints and exits with 2."""


class InputError(ValueError):
    """Bad input: names the argument or file, what was expected, and what came."""
