"""The Grafana dashboards, built in Python."""
