"""The progress server: trainers say how far they are, over TLS, with a token bound to their pod."""
