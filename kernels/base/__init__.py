"""What everything below stands on: Triton's import, and how each dtype is computed."""
