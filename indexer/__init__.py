"""Indexer: keeps the product vectors in Qdrant equal to the catalogue and to the product release in force."""
