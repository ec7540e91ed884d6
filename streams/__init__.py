"""From a shopper's click to a preference pair: the collector, the agents, and the rules they apply."""
