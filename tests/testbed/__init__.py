"""A real Kubernetes API server for the tests, from binaries found or built here."""
