"""Kits that others run their own code through."""
