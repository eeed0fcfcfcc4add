"""What is asked of the past: rows that have come, and long series."""
