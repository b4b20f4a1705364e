"""The front doors: `Sequential`, `Model` and `load`, over one `Learner`."""
