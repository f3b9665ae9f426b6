"""From bytes of a container's journal to stored log lines."""
