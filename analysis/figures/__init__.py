"""The figures of the report: each function takes a table and returns a matplotlib Figure."""
