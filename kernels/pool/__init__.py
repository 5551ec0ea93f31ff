"""Pools and unpooling, sliding and adaptive, and their gradients."""
