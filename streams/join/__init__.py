"""The join: impressions and what followed them become joined searches."""
