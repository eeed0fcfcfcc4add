"""The processes of the service: who starts and mends them, what they tell each other, and where the devices are."""
