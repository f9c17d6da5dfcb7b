"""What is counted and measured, and the text that shows it."""
