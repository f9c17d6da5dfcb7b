"""OpenAI's API over the routes of a service: `OpenAI`."""
