"""Recipes and published versions, from several origins and beside each other."""
