"""What can be seen of a running Millrace from outside: lag, ledgers, freshness, releases."""
