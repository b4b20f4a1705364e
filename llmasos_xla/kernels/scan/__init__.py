"""The linear recurrence over time: `linear_scan`."""
