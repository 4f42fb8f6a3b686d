"""Trained models: loading, sampling, their cards and files."""
