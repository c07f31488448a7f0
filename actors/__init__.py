"""What the jobs do. A module is a category, and its name is the category's name."""
