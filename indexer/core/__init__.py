"""Decisions of the indexer: values in, values out."""
