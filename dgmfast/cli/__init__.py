"""The command line, with one module per group of commands.

A user's error is printed in one line, with exit code 2. The exit code of an interruption is 130.
"""

from dgmfast.cli.drawing import compare, figures
from dgmfast.cli.evaluation import classify, evaluate, sample
from dgmfast.cli.group import INTERRUPTED, USER_ERROR, main
from dgmfast.cli.other import bench, demo, info
from dgmfast.cli.tables import baseline, data_command, recipes_command, reproduce
from dgmfast.cli.training import train_command

for command in (
    train_command,
    evaluate,
    classify,
    sample,
    figures,
    compare,
    reproduce,
    baseline,
    data_command,
    recipes_command,
    demo,
    info,
    bench,
):
    main.add_command(command)

__all__ = ["INTERRUPTED", "USER_ERROR", "main"]
