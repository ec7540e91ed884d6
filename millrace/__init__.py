"""The `millrace` command and its built-in page. Nothing imports this package but the simulator."""
