"""The claims cache: keys, backends, and the store that combines them."""
