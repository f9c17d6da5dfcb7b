"""Worker processes: started, watched, replaced, stopped."""
