"""Changes of what is served, on behalf of whoever has the key to it: made in the store, which all replicas follow."""
