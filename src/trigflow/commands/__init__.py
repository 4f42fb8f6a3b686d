"""What the command `trigflow` can do: one file per verb, each ending in its COMMAND.

Nothing here imports torch before a verb runs, so that `trigflow --help` answers at once.
"""
