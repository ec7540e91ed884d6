"""The pairs stage: joined searches become weighted preference pairs."""
