"""How a product release comes into force: a second collection is built, filled, checked and switched to."""
