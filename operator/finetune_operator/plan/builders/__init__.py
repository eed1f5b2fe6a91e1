"""One pure builder an object."""
