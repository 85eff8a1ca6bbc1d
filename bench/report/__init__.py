"""What the measurements say: ratios against targets, tables, pictures and pages."""
