"""The groups of `millrace` commands; each module is the thin edge of something that is tested without it."""
