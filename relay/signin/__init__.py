"""Access tokens: where they come from when nobody gives one."""
