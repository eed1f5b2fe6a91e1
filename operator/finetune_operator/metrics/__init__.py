"""Prometheus metrics, collected when scraped."""
