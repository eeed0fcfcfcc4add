"""What the exported network errs, beside the baselines."""
