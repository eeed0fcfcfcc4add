"""Looking for better values of a recipe, with Optuna."""
