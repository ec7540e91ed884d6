"""From the catalogue to base vectors and into the index, batch by batch."""
