"""Calls of the command line for tests."""

from click.testing import CliRunner

from dgmfast import cli


def call(*arguments, code=0):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def refused(*arguments):
    """Asserts that the command ends with exit code 2 and one line of error, and returns that line."""
    lines = call(*arguments, code=2).stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), lines
    return lines[0]
