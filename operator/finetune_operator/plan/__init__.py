"""From what is observed to what is wanted: pure functions, no I/O, the clock given."""
