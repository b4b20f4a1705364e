"""Maximum and mean over sliding windows."""
