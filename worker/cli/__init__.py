"""The command line: the settings, the commands, and how a worker starts."""
