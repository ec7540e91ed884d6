"""Search: a query head and the collection that it was trained for, and the impressions that close the loop."""
