"""From a container's /artifacts to an object store. Only this package imports ``obstore``."""
