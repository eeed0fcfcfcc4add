"""Where connections end: uvicorn and its protocol, with bounds, and what surrounds every request."""
