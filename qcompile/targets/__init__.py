"""What runtimes can do: one table per target."""
