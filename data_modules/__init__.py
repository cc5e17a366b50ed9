"""LightningDataModules, one file per data set."""
