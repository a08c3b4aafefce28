"""What is done to a sample: recipes, which are plain data, and the random draws they ask for."""
