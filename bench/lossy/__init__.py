"""What is quicker and another picture: settings of a request, and continuing the pictures of near prompts."""
