"""The command line: settings, and the commands beside working."""
