"""The console: runs, logs, queue and workers in a browser. Only ``ops-worker console`` imports it."""
