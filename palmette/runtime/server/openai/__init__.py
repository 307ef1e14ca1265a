"""OpenAI's endpoints: one file each, what they share beside them. Importing this package imports none of them."""
