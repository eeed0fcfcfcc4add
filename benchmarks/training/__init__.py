"""Training: beside other libraries, and how much memory a long series takes."""
