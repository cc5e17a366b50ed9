"""LightningModules: how each paper learns, one file per paper."""
