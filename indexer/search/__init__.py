"""The search service: encodes a query, asks the vector store, answers, and writes what was shown."""
