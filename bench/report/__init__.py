"""Rendering of the measurements: ratios against targets, tables, plots and pages."""
