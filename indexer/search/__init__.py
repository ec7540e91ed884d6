"""Search: one immutable (query head, collection) pair per request, and the impressions that close the loop."""
