"""Workers in actors of Ray: Ray places them and tells of their death, and frames pass by a connection of our own."""
