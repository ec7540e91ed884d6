"""The built-in page: lag, freshness, ledgers and releases of one deployment, refreshed every second."""
