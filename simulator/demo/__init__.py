"""The demonstration: the whole chain on one machine, with simulated shoppers, ending in measured search quality."""
