"""The control plane in PostgreSQL."""
