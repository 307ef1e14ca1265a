"""Varied prompts: prose, questions, code, lists, numbers, other scripts, chat markup."""

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n    ",
    "Q: How many legs does a spider have?\nA:",
    "1, 2, 4, 8, 16,",
    "Dear Sir or Madam,\n\nI am writing to",
    "The three primary colours are red,",
    "Water boils at 100 degrees Celsius, which is",
    "import numpy as np\n\nx = np.",
    "La capitale de l'Italie est",
    "In 1969, the first humans",
    "Ingredients:\n- 2 eggs\n- 100 g of sugar\n-",
    '{"name": "Ada", "age": 36, "city":',
    "To be, or not to be, that is the",
    "Photosynthesis is the process by which plants",
    "<html>\n  <head>\n    <title>",
    "Die Donau fließt durch",
    "Roses are red, violets are blue,",
    "The derivative of x^2 with respect to x is",
    "日本の首都は",
]
