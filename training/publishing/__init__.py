"""From a network to a published version."""
