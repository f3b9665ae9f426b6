"""ops-worker: runs the workflows of a self-hosted Odoo platform in containers."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ops-worker")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+uninstalled"
