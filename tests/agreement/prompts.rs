//! What both engines are asked to go on with: prose, lists, code, in several voices.

pub(crate) const PROMPTS: [&str; 20] = [
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "The three primary colours are",
    "Water boils at",
    "In 1969 the first man",
    "Dear Sir or Madam,\n",
    "SELECT name FROM users WHERE",
    "The meaning of life is",
    "My favourite recipe begins with",
    "Photosynthesis is the process by which",
    "1, 1, 2, 3, 5, 8,",
    "Q: What is the largest planet?\nA:",
    "The quick brown fox",
    "To install the program, first",
    "A haiku about the sea:\n",
    "The theory of relativity says that",
    "import numpy as np\n",
    "Good morning, ladies and gentlemen.",
    "The difference between a virus and a bacterium is",
];
