"""What is asked, before anyone computes: queries and tables of whatever body, laid out for a model."""
