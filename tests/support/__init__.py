"""What several test directories share: servers to test against, and the tools that write expected results."""
