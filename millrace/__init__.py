"""The `millrace` command, its built-in page and the shop simulator. Nothing imports this package."""
