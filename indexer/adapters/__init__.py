"""Adapters of the indexer: the only places that talk to servers."""
