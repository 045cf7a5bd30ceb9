"""Measure the cluster that one runs on: devices, links, collectives. The result is a cluster file for `plan`."""
