"""`finetune`: the same jobs on this machine, and checks of manifests."""
