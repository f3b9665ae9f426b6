"""The same job on ops-worker and on its peers, each broken in the same three ways: ``make compare``."""
