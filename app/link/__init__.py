"""The way to the devices and back: orders, the frames that they travel in, and who waits for which."""
