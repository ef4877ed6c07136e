"""A TCP proxy, to test what happens on the network."""
