"""A simulated shop: its world, its shoppers and the traffic they make. Only a client of the collector and of search."""
