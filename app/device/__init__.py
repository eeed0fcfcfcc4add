"""What computes: a loop for each device, who is next, and the passes through the networks."""
