"""Where the operator meets the world: kopf, the lease, HTTP. The only place that imports kopf."""
