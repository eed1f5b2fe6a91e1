"""The training program: data -> batches -> model and strategy -> loop -> checkpoint -> export."""
