"""Every key of an experiment's config, one file a section."""
