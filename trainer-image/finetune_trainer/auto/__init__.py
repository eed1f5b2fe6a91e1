"""strategy.auto: the strategy is chosen by the data, the model and the memory, once a job, with its reason."""
