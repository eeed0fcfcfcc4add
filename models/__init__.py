"""What a model is: the artifact contract, the networks and the blocks they share. Imports neither app nor training."""
