"""Forecast accuracy against published results, by their own protocol."""
