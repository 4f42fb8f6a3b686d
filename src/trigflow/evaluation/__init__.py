"""Scores of models beside their teachers and beside real data: what is measured, against what, and how it is told."""
