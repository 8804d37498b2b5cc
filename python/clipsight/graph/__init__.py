"""The network's dataflow as one typed view, the table of its ops, and what follows from both."""
