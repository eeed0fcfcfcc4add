"""Tests of the offline training module."""
