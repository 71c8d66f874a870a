"""Experiments: commands that write tables, figures and a manifest."""
