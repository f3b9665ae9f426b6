"""Pure data and decisions: no I/O, and no import of another package of ours but ``errors``."""
