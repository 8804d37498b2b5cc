"""Gradients and relevance as forward graphs: what a gradient head runs behind the network."""
