"""The arms stage: what became of each arm's lists."""
