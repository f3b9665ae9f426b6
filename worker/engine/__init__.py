"""The container engine. Only this package imports ``docker``."""
