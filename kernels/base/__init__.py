"""The ground floor: Triton's import, its interpreter, and how each dtype is computed."""
