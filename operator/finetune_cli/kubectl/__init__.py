"""`kubectl finetune`: the jobs of a cluster, for people."""
