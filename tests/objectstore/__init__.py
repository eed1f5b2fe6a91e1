"""A real object store on this machine, for the tests of what is read from such stores and written there."""
