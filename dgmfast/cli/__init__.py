"""The command line, a module per group of commands. A user's error is one line and exit code 2, an interruption 130."""

from dgmfast.cli._evaluate import classify, evaluate, sample
from dgmfast.cli._figures import compare, figures
from dgmfast.cli._group import INTERRUPTED, USER_ERROR, main
from dgmfast.cli._other import bench, demo, info
from dgmfast.cli._tables import baseline, reproduce
from dgmfast.cli._train import train_command

for command in (train_command, evaluate, classify, sample, figures, compare, reproduce, baseline, demo, info, bench):
    main.add_command(command)

__all__ = ["INTERRUPTED", "USER_ERROR", "main"]
