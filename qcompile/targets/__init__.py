"""What runtimes can do: a folder of facts per target; which nodes have an integer form there."""
