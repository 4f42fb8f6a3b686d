"""Models as their user sees them: load, sample, their cards and files."""
