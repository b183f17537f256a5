"""The SQL of each table: statements that are built once, and what they make of rows. Used by `store` alone."""
