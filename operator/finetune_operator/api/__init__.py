"""What the operator says of a job: conditions and reasons."""
