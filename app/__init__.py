"""The online service: knows HTTP, queues and devices; knows no network architecture."""
