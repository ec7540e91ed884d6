"""The preference model: what clicks add to what the text says, solved from a table of evidence under a prior."""
