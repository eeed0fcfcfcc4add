"""From files to windows: series on an even grid, the split in time, statistics, batches."""
