"""The controller: kopf watches, a queue, a pure plan, Kubernetes; metrics; the progress server."""
