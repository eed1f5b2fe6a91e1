"""Level-triggered reconciliation: events fill a store and a queue, workers bring each job to what is planned for it."""
