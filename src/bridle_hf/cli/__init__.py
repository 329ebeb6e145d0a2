"""The `bridle` command: a module per command, and what they share (options, checks, settings of the process)."""
