"""Rows from files and hubs: read, checked, counted."""
